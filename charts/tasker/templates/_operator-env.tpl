{{- /* The operator's settings; each is read in tasker/settings.py, which a test holds this against. */ -}}
{{- define "tasker.operatorEnv" -}}
{{- include "tasker.databaseEnv" . }}
{{- with .Values.database.listenKey }}
- name: TASKER_LISTEN_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ $.Values.database.existingSecret }}
      key: {{ . }}
{{- end }}
{{- with .Values.database.workers.existingSecret }}
- name: TASKER_WORKER_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $.Values.database.workers.key }}
{{- end }}
- name: TASKER_WORKER_IMAGE
  value: {{ include "tasker.image" (dict "root" . "image" .Values.worker.image) | quote }}
{{- with .Values.worker.image.pullPolicy }}
- name: TASKER_WORKER_IMAGE_PULL_POLICY
  value: {{ . | quote }}
{{- end }}
{{- with .Values.worker.imagePullSecrets }}
- name: TASKER_WORKER_IMAGE_PULL_SECRETS
  value: {{ join "," . | quote }}
{{- end }}
{{- with .Values.watchNamespaces }}
- name: TASKER_WATCH_NAMESPACES
  value: {{ join "," . | quote }}
{{- end }}
- name: TASKER_INSTALLATION
  value: {{ printf "%s/%s" .Release.Namespace (include "tasker.fullname" .) | quote }}
- name: TASKER_ENV
  value: {{ .Values.environment }}
- name: TASKER_MANAGED_POOL
  value: {{ include "tasker.defaultPool" . | quote }}
- name: TASKER_HEALTH_PORT
  value: "8080"
- name: TASKER_LOG
  value: {{ .Values.logLevel }}
- name: TASKER_LOG_FORMAT
  value: {{ .Values.logFormat }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end -}}
