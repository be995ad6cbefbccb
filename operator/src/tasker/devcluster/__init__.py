"""The embedded one-machine cluster behind `tasker dev`: a development server, not Kubernetes."""
