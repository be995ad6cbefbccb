{{- /* What the schema cannot say, refused with a text that says what to do. Called by the Deployment. */ -}}
{{- define "tasker.validate" -}}
{{- if and .Values.postgresql.enabled .Values.database.existingSecret -}}
{{- fail "database.existingSecret and postgresql.enabled exclude each other: use your own Postgres or the bundled one" -}}
{{- end -}}
{{- if not (or .Values.postgresql.enabled .Values.database.existingSecret) -}}
{{- fail "database.existingSecret is required: name a Secret with the connection URL of your Postgres (or set postgresql.enabled for development)" -}}
{{- end -}}
{{- if gt (int .Values.defaultPool.minReplicas) (int .Values.defaultPool.maxReplicas) -}}
{{- fail (printf "defaultPool.maxReplicas (%d) must not be below defaultPool.minReplicas (%d)" (int .Values.defaultPool.maxReplicas) (int .Values.defaultPool.minReplicas)) -}}
{{- end -}}
{{- if and (hasKey .Values.defaultPool "replicas") (eq (dig "scaling" "mode" "operator" .Values.defaultPool) "operator") -}}
{{- fail "defaultPool.replicas may be set only with defaultPool.scaling.mode external or manual" -}}
{{- end -}}
{{- end -}}
