{{- /* The container that brings the schema up to date, but for its name. */ -}}
{{- define "tasker.migrateContainer" -}}
image: {{ include "tasker.image" (dict "root" . "image" .Values.image) }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
command: [tasker, migrate]
env:
  {{- include "tasker.databaseEnv" . | nindent 2 }}
securityContext:
  {{- toYaml .Values.containerSecurityContext | nindent 2 }}
resources:
  {{- toYaml .Values.migration.resources | nindent 2 }}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
{{- end -}}
