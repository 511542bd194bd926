# Towline as a container: docker build -t towline . && docker run --rm towline --help
# All packages come from lock files with hashes; what builds the wheel stays behind in the first stage.

FROM python:3.13-slim-bookworm AS build
WORKDIR /build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv --without-pip /opt/towline
COPY deploy/requirements.lock deploy/
RUN pip --python /opt/towline/bin/python install --require-hashes --only-binary :all: -r deploy/requirements.lock
COPY deploy/build.lock deploy/
RUN pip install --require-hashes --only-binary :all: -r deploy/build.lock
COPY pyproject.toml README.md ./
COPY daemon daemon
COPY transforms transforms
RUN pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && pip --python /opt/towline/bin/python install --no-deps --no-index dist/*.whl

FROM python:3.13-slim-bookworm
LABEL org.opencontainers.image.title="towline" \
      org.opencontainers.image.description="Replicates logistics records from a live database into another as they change."
RUN pip uninstall --yes --quiet --root-user-action=ignore pip
COPY --from=build /opt/towline /opt/towline
ENV PATH=/opt/towline/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# A number, so that an orchestrator can see that it is not root.
USER 65532:65532
EXPOSE 9464
STOPSIGNAL SIGTERM
# Whether the loop turns; also when source or target are down, which a restart would not mend.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-c", "\
import http.client, sys\n\
connection = http.client.HTTPConnection('127.0.0.1', 9464, timeout=4)\n\
connection.request('GET', '/healthz')\n\
sys.exit(connection.getresponse().status != 200)"]
ENTRYPOINT ["towline"]
CMD ["run", "/etc/towline/pipeline.yaml"]
