# syntax=docker/dockerfile:1

# The service in one image: web, Celery workers and beat differ in their command only (docker-compose.yml).
# To pin the base for good, append its digest: python:3.13-slim@sha256:<docker buildx imagetools inspect python:3.13-slim>
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS dependencies
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
COPY requirements/serve.lock /tmp/serve.lock
# Every file has its hash in the lock; only wheels, so that nothing is compiled or run while it is installed.
RUN /opt/venv/bin/pip install --require-hashes --only-binary :all: -r /tmp/serve.lock

FROM ${PYTHON_IMAGE}
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DJANGO_SETTINGS_MODULE=mlserve.settings.production \
    MLSERVE_VAR_DIR=/app/var \
    MLSERVE_LOG_FORMAT=json \
    PROMETHEUS_MULTIPROC_DIR=/run/mlserve/metrics \
    GRANIAN_BLOCKING_THREADS=26
RUN groupadd --system --gid 10001 mlserve \
    && useradd --system --uid 10001 --gid mlserve --no-create-home --home-dir /nonexistent mlserve \
    && install --directory --owner mlserve --group mlserve --mode 0700 \
        /app/var/spool /app/var/last-known /run/mlserve /run/mlserve/metrics
COPY --from=dependencies /opt/venv /opt/venv
WORKDIR /app
COPY manage.py ./
COPY mlserve mlserve
COPY features features
COPY predictions predictions
COPY warmup warmup
# The code belongs to root: the process cannot change itself. The key below signs nothing, it only lets settings load;
# the local settings, because production's would ask for servers as well.
RUN python -m compileall -q manage.py mlserve features predictions warmup \
    && MLSERVE_SECRET_KEY=only-while-the-image-is-built MLSERVE_CACHE_MAC_KEY=off \
        python manage.py collectstatic --settings mlserve.settings.local --noinput --verbosity 0 \
    && find /run/mlserve/metrics -type f -delete
USER 10001:10001
EXPOSE 8000
# 127.0.0.1 must be among MLSERVE_ALLOWED_HOSTS. Workers and beat have health checks of their own in the compose file.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz/live', timeout=2)"]
CMD ["granian", "--interface", "wsgi", "--host", "0.0.0.0", "--port", "8000", "--workers", "2", \
     "--http", "1", "--http1-header-read-timeout", "10000", "--backlog", "1024", "--backpressure", "512", "--no-ws", \
     "--respawn-failed-workers", "mlserve.wsgi:application"]
