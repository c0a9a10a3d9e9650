# Serve a model on CPUs:
#     docker build -f docker/cpu.Dockerfile -t fathom:cpu .
#     docker run --rm -p 127.0.0.1:8000:8000 -v fathom-cache:/cache fathom:cpu smollm2-135m
# Inside the container the server listens on all addresses; -p says who outside may reach it.
FROM python:3.12-slim

RUN apt-get update && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 fathom \
    && install --directory --owner=fathom /cache

WORKDIR /opt/fathom
COPY pyproject.toml setup.py MANIFEST.in constraints.txt README.md LICENSE ./
COPY build_backend build_backend
COPY fathom fathom
RUN pip install --no-cache-dir --constraint constraints.txt --index-url https://download.pytorch.org/whl/cpu torch \
    && pip install --no-cache-dir --constraint constraints.txt ".[gguf,hub,images,serve]"

USER fathom
ENV FATHOM_CACHE=/cache
EXPOSE 8000
ENTRYPOINT ["fathom", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["smollm2-135m"]
