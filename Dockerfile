# The service, without torch. VARIANT=cpu (default) takes the plain onnxruntime wheel, VARIANT=cuda onnxruntime-gpu with
# the CUDA 13 and cuDNN 9 libraries from PyPI; never both wheels in one image.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE} AS build
ARG VARIANT=cpu
WORKDIR /src
COPY pyproject.toml constraints.txt deploy/requirements.py README.md LICENSE ./
RUN python3 -m venv /venv \
 && python3 requirements.py "$VARIANT" > requirements.txt \
 && /venv/bin/python -m pip install --no-cache-dir --no-compile -c constraints.txt -r requirements.txt
COPY models models
COPY service service
COPY scripts scripts
RUN /venv/bin/python -m pip install --no-cache-dir --no-compile --no-deps -c constraints.txt . \
 && /venv/bin/python -m pip uninstall --yes pip setuptools \
 && mkdir /models

# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="focalserve" \
      org.opencontainers.image.description="Serves focal-loss models from ONNX, and finds wrong labels" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /venv /venv
COPY --from=build --chown=10001:10001 /models /models
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 FOCALSERVE_MODELS=/models
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
  CMD ["/venv/bin/python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
ENTRYPOINT ["/venv/bin/python", "-m", "service"]
CMD ["--host", "0.0.0.0", "--port", "8000"]
