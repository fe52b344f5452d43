{{/* Labels of every object. Those of Helm come on top; the tests take them off again. */}}
{{- define "orb8.labels" -}}
app.kubernetes.io/part-of: orb8
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/instance: {{ .Release.Name }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* Scheme of the metrics ports: TLS wherever there are certificates. */}}
{{- define "orb8.scheme" -}}
{{ if .Values.tls.insecure }}http{{ else }}https{{ end }}
{{- end }}

{{/* Probes of a container. Takes the root, and how often the start is looked at. */}}
{{- define "orb8.probes" -}}
{{- $scheme := include "orb8.scheme" .root | upper -}}
startupProbe:
  httpGet:
    path: /healthz
    port: metrics
    scheme: {{ $scheme }}
  periodSeconds: 2
  failureThreshold: {{ .startLooks }}
livenessProbe:
  httpGet:
    path: /healthz
    port: metrics
    scheme: {{ $scheme }}
  periodSeconds: 20
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet:
    path: /readyz
    port: metrics
    scheme: {{ $scheme }}
  periodSeconds: 10
  timeoutSeconds: 5
{{- end }}
