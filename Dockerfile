# The server alone. compose.yaml starts it together with its databases.
FROM python:3.11-slim-bookworm AS build

WORKDIR /src
RUN python -m venv /venv
COPY requirements.txt ./
RUN /venv/bin/pip install --no-cache-dir --require-hashes -r requirements.txt
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY chat_server ./chat_server
RUN /venv/bin/pip install --no-cache-dir --no-deps .

FROM python:3.11-slim-bookworm

# The embedded database is in /data. With all three stores in servers of their own, nothing is written to disk.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin chat \
    && install --directory --owner=chat --group=chat --mode=700 /data
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    CHAT_SERVICE_APPMODE=release \
    CHAT_SERVICE_DATADIR=/data \
    CHAT_SERVICE_HTTPHOST=0.0.0.0 \
    CHAT_SERVICE_HTTPPORT=8081
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8081
# GET /ping touches no store. /health answers 503 while a store is away, which a restart of the server does not cure.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', os.environ['CHAT_SERVICE_HTTPPORT'], timeout=4); c.request('GET', '/ping'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["chat-server"]
