# One worker. Not built or run by the project's own tests: tests/unit/test_deploy.py checks what it names.

FROM python:3.11-slim-bookworm AS build
WORKDIR /src
# Bytecode is compiled here: the worker's user could not keep it, and every engine would begin anew.
COPY requirements/tools.lock requirements/worker.lock requirements/
RUN python -m venv /opt/tools \
    && /opt/tools/bin/pip install --no-cache-dir --require-hashes -r requirements/tools.lock \
    && python -m venv --without-pip /opt/darkroom \
    && /opt/tools/bin/uv pip install --no-cache --compile-bytecode --python /opt/darkroom/bin/python --require-hashes -r requirements/worker.lock
COPY pyproject.toml README.md LICENSE ./
COPY worker worker
RUN /opt/tools/bin/python -m hatchling build -t wheel \
    && /opt/tools/bin/uv pip install --no-cache --compile-bytecode --python /opt/darkroom/bin/python --no-deps dist/*.whl

FROM python:3.11-slim-bookworm
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --no-create-home darkroom \
    && install -d -o darkroom -g darkroom /var/lib/darkroom
COPY --from=build /opt/darkroom /opt/darkroom
# Inside a container nothing reaches 127.0.0.1 from outside; who may reach the port is the network's affair.
ENV PATH=/opt/darkroom/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DARKROOM_DATA_DIR=/var/lib/darkroom \
    DARKROOM_HTTP__HOST=0.0.0.0 \
    DARKROOM_HTTP__PORT=9400
USER darkroom
WORKDIR /var/lib/darkroom
VOLUME /var/lib/darkroom
EXPOSE 9400
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9400/livez', timeout=2)"]
# tini reaps what the worker's engines may leave, and passes SIGTERM to the worker alone: the worker drains its engines.
ENTRYPOINT ["tini", "--", "darkroom"]
CMD ["run"]
