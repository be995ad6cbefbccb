"""A Kubernetes-like cluster on one machine, for developing and testing operators: a development server, not Kubernetes.

    apiserver   serves objects over HTTPS, as kubectl and client libraries expect it
    machinery   what Kubernetes does to objects, without HTTP and without storage
    node        runs Deployments as processes, with the programs that its owner gives for images
    postgres    a PostgreSQL server of one's own, for whatever the operator under test keeps there
    kubectl     the real kubectl, run and read from
    locks       advisory locks on files
    errors      what all of them raise

It knows the CRDs, images and programs that it is given, and nothing of any product.
"""
