"""The pure half of the embedded API server: what Kubernetes does to objects, without HTTP and without storage.

Every object is a plain JSON value (dict, list, str, int, float, bool, None). No function here changes its arguments;
what is returned shares nothing with them. The HTTP server (`devcluster.apiserver`) is the caller.

    resources       which kinds exist: built-in ones, and those that a CustomResourceDefinition adds
    schema          defaulting, pruning, validation against a structural schema
    cel             the `x-kubernetes-validations` rules of a schema
    patch           JSON patch, merge patch, strategic merge patch
    managed_fields  field ownership and server-side apply
    selectors       label and field selectors
    table           what `kubectl get` prints
    openapi         the documents that kubectl reads for `explain` and validation
"""
