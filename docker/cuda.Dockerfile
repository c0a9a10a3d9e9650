# Serve a model on an NVIDIA GPU (needs the NVIDIA Container Toolkit):
#     docker build -f docker/cuda.Dockerfile -t fathom:cuda .
#     docker run --rm --gpus all -p 127.0.0.1:8000:8000 -v fathom-cache:/cache fathom:cuda smollm2-135m
# PyTorch's wheels bring CUDA; the base image needs the driver's libraries only, which the toolkit mounts.
FROM python:3.12-slim

RUN apt-get update && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 fathom \
    && install --directory --owner=fathom /cache

WORKDIR /opt/fathom
COPY pyproject.toml setup.py MANIFEST.in constraints.txt README.md LICENSE ./
COPY build_backend build_backend
COPY fathom fathom
RUN pip install --no-cache-dir --constraint constraints.txt ".[gguf,hub,images,serve]"

USER fathom
ENV FATHOM_CACHE=/cache NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
EXPOSE 8000
ENTRYPOINT ["fathom", "serve", "--device", "cuda", "--host", "0.0.0.0", "--port", "8000"]
CMD ["smollm2-135m"]
