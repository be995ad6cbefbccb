{{- define "tasker.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- /* The prefix of all names: the release's name, with the chart's when it does not hold it. 40 characters at most, so
that every suffix here stays within a label's 63. */ -}}
{{- define "tasker.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "tasker.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Names of objects outside of namespaces: two releases of one name may be in two namespaces. */ -}}
{{- define "tasker.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "tasker.fullname" .) -}}
{{- end -}}

{{- define "tasker.chart" -}}
{{- printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- /* What never changes, for selectors. Takes a dict of root and component. */ -}}
{{- define "tasker.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tasker.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- /* All labels. Takes a dict of root and component. */ -}}
{{- define "tasker.labels" -}}
{{ include "tasker.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: tasker
helm.sh/chart: {{ include "tasker.chart" .root }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* repository:tag or repository@digest. Takes a dict of root and image. */ -}}
{{- define "tasker.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (.image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "tasker.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "tasker.fullname" .) -}}
{{- else -}}
{{- required "serviceAccount.name is required when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "tasker.imagePullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "tasker.postgresqlName" -}}
{{- printf "%s-postgresql" (include "tasker.fullname" .) -}}
{{- end -}}

{{- /* The environment that says where Postgres is. */ -}}
{{- define "tasker.databaseEnv" -}}
- name: DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ if .Values.postgresql.enabled }}{{ include "tasker.postgresqlName" . }}{{ else }}{{ .Values.database.existingSecret }}{{ end }}
      key: {{ if .Values.postgresql.enabled }}DATABASE_URL{{ else }}{{ .Values.database.key }}{{ end }}
{{- end -}}

{{- /* The spec of a managed pool as JSON: the values, with what is said about the workers' image. */ -}}
{{- define "tasker.defaultPool" -}}
{{- $spec := deepCopy .Values.defaultPool -}}
{{- if not (or $spec.handlers $spec.handlersFrom $spec.image) -}}
{{- $_ := set $spec "handlersFrom" (dict "configMapRef" (dict "name" "tasker-handlers")) -}}
{{- end -}}
{{- toJson $spec -}}
{{- end -}}

{{- /* Where the chart's own pods run. */ -}}
{{- define "tasker.nodes" -}}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* Egress to names and addresses; every pod of ours needs it. */ -}}
{{- define "tasker.dnsEgress" -}}
- ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
{{- end -}}

{{- define "tasker.databaseEgress" -}}
- ports:
    {{- range .Values.postgresql.enabled | ternary (list 5432) .Values.database.ports }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- end -}}

{{- define "tasker.apiServerEgress" -}}
- ports:
    {{- range .Values.networkPolicy.apiServerPorts }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- end -}}
