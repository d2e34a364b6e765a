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

# The embedded database lies in /data; with all three databases outside nothing is written anywhere.
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
# 503, while a store is away, is an error to urlopen and so unhealthy. /health answers within StoreTimeout.
HEALTHCHECK --interval=10s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['CHAT_SERVICE_HTTPPORT'] + '/health', timeout=9)"]
ENTRYPOINT ["chat-server"]
