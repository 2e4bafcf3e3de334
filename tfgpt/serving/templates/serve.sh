#!/bin/sh
# The server's full command line; tensorflow_model_server must be on PATH. Model files: MODELS, settings: SETTINGS.
# It listens on all addresses without a password: put it behind a front end or in a private network.
set -eu
settings="$${SETTINGS:-$settings_path}"
# grpc_max_threads: the default, 4 a core, is used up by 8 long texts at a time; 64 held.
# rest_api_timeout_in_ms: the default, 30 s, cuts long texts off.
# allow_version_labels...: otherwise a label may be given only to a version that is loaded already.
exec tensorflow_model_server \
  --port=8500 \
  --rest_api_port=8501 \
  --rest_api_timeout_in_ms=120000 \
  --rest_api_num_threads=64 \
  --grpc_max_threads=64 \
  --model_config_file="$$settings/models.config" \
  --model_config_file_poll_wait_seconds=30 \
  --allow_version_labels_for_unavailable_models=true \
  --enable_model_warmup=true \
  --enable_batching=true \
  --batching_parameters_file="$$settings/batching.config" \
  --monitoring_config_file="$$settings/monitoring.config" \
  --enable_grpc_healthcheck_service=true \
  "$$@"
