# The proxy: docker build -t qwenctl . (docs/deployment.md). The node's image is another one:
# examples/node-compose.
FROM python:3.12-slim AS build
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
RUN --mount=from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(echo /wheels/*.whl)[proxy,aliyun,aws]" \
    && useradd --system --uid 10001 --create-home --home-dir /var/lib/qwenctl qwenctl
USER qwenctl
WORKDIR /var/lib/qwenctl
ENV QWENCTL_CONFIG=/etc/qwenctl/qwenctl.toml QWENCTL_STATE_DIR=/var/lib/qwenctl
VOLUME /var/lib/qwenctl
EXPOSE 8080
# Requests in flight go on for proxy.shutdown_grace: give `docker stop` longer than that.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/_qwenctl/healthz', timeout=4)"]
ENTRYPOINT ["qwenctl"]
CMD ["serve"]
