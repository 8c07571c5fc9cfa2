# Limelight's images: `serve` runs the service, and `export` writes the bundle that it serves.
#   docker build --build-arg EXTRA=gpu -t limelight .
# The GPU image contains CUDA and cuDNN as Python packages; the host needs a driver and the NVIDIA Container Toolkit.

ARG PYTHON=3.13-slim-trixie

# --- Build stages, which have pip -----------------------------------------------------------------------------------
FROM python:${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
COPY requirements/build.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv tools && tools/bin/pip install -q --require-hashes -r requirements/build.txt
COPY pyproject.toml README.md LICENSE ./

# The service's environment has no pip: nothing can be installed where it runs.
FROM build AS serve-environment
ARG EXTRA=cpu
COPY requirements/serve-${EXTRA}.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /opt/venv \
    && tools/bin/pip --python /opt/venv/bin/python install -q --require-hashes -r requirements/serve-${EXTRA}.txt
COPY limelight_start.py ./
COPY service service
# This environment has no `model_export`, and so no program for it.
RUN sed -i '/^limelight-model = /d' pyproject.toml \
    && tools/bin/pip wheel -q --no-deps --no-build-isolation -w wheels . \
    && tools/bin/pip --python /opt/venv/bin/python install -q --no-deps wheels/*.whl

FROM build AS export-environment
COPY requirements/export.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/venv && /opt/venv/bin/pip install -q --require-hashes -r requirements/export.txt
COPY limelight_start.py ./
COPY service service
COPY model_export model_export
RUN tools/bin/pip wheel -q --no-deps --no-build-isolation -w wheels . \
    && /opt/venv/bin/pip install -q --no-deps wheels/*.whl
# Fetch the weights now, so that the container needs no network.
RUN --mount=type=cache,target=/root/.cache/pip KERAS_HOME=/opt/keras /opt/venv/bin/limelight-model fetch-weights

# --- Runtime stages ------------------------------------------------------------------------------------------------
FROM python:${PYTHON} AS runtime
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Limelight" \
      org.opencontainers.image.description="Recognises human actions in video clips and shows where the network looked" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# Limelight turns ONNX Runtime's telemetry off by itself; the variable also covers other programs run in the container.
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 HOME=/tmp ORT_DISABLE_TELEMETRY=1
# A new volume that is mounted here takes over this owner.
RUN install -d -o 10001 -g 10001 /bundles
WORKDIR /bundles
USER 10001:10001

FROM runtime AS export
ENV KERAS_HOME=/opt/keras
COPY --from=export-environment /opt/keras /opt/keras
COPY --from=export-environment /opt/venv /opt/venv
HEALTHCHECK NONE
ENTRYPOINT ["limelight-model"]
# The number is the schema of the manifest, so that an image that was rolled back finds the bundle that it can read.
CMD ["export", "--output", "/bundles/limelight-1"]

FROM runtime AS serve
ENV LIMELIGHT_HOST=0.0.0.0 LIMELIGHT_BUNDLE=/bundles/limelight-1
COPY --from=serve-environment /opt/venv /opt/venv
EXPOSE 8000
# A check takes 50 ms of processor time. With --start-interval it could run less often once the service is ready, but
# Docker before 25.0 does not know that option.
HEALTHCHECK --interval=5s --timeout=5s --start-period=2m \
    CMD ["python", "-P", "-m", "service.cli.health"]
ENTRYPOINT ["limelight"]
CMD ["serve"]
