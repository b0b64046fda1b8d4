{{- define "orlop.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end -}}
{{- end -}}

{{- define "orlop.labels" -}}
app.kubernetes.io/part-of: orlop
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "orlop.caAddress" -}}
{{ .Values.ca.address | default (printf "https://orlop-controller.%s.svc:15012" .Release.Namespace) }}
{{- end -}}

{{/* Flags that nodes and controller must have alike. */}}
{{- define "orlop.meshArgs" -}}
- --trust-domain={{ .Values.mesh.trustDomain }}
{{- range .Values.mesh.trustDomainAliases }}
- --trust-domain-alias={{ . }}
{{- end }}
- --root-namespace={{ .Values.mesh.rootNamespace }}
- --cluster={{ .Values.mesh.cluster }}
- --cluster-domain={{ .Values.mesh.clusterDomain }}
{{- end -}}
