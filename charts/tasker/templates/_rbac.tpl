{{- /* What the operator may do in a namespace it serves: each verb is used, see tests/unit/chart. */ -}}
{{- define "tasker.namespacedRules" -}}
# Our kinds: seen, their statuses written; Tasks deleted when their time to live is over; a managed pool made and removed.
- apiGroups: [tasker.dev]
  resources: [tasktemplates]
  verbs: [get, list, watch]
- apiGroups: [tasker.dev]
  resources: [tasks]
  verbs: [get, list, watch, delete]
- apiGroups: [tasker.dev]
  resources: [workerpools]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [tasker.dev]
  resources: [tasktemplates/status, tasks/status, workerpools/status]
  verbs: [patch]
{{- if .Values.rbac.ownerReferencesPermissionEnforcement }}
- apiGroups: [tasker.dev]
  resources: [workerpools/finalizers]
  verbs: [update]
{{- end }}
# What a pool is made of, applied server-side.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [create, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [create, patch]
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [create, patch]
# The workers' connection URL: written under this one name, never read.
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [tasker-database]
  verbs: [create, patch]
# Handlers are mounted from ConfigMaps; changed ones roll the workers.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch]
# Workers: those that vanish lose their leases at once, those with empty hands are made the cheapest to delete.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- end -}}

{{- /* What it may do outside of the namespaces it serves: to look, and only at these. Serving some namespaces it asks
about those alone. */ -}}
{{- define "tasker.clusterRules" -}}
- apiGroups: [""]
  resources: [namespaces]
  verbs: [{{ if .Values.watchNamespaces }}get{{ else }}get, list, watch{{ end }}]
{{- if not .Values.watchNamespaces }}
- apiGroups: [apiextensions.k8s.io]
  resources: [customresourcedefinitions]
  verbs: [list, watch]
{{- end }}
{{- end -}}
