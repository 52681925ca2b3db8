# A container of this bench. Not built or run where it was written: docs/cloud.md says what that means.
#
#   docker build -t qkvbench .
#   docker build -t qkvbench:cuda --build-arg BASE=pytorch/pytorch:2.9.1-cuda12.8-cudnn9-runtime .
#   docker run --rm -v "$PWD/results:/bench/results" -v qkvbench-cache:/cache qkvbench run quick
#
# The second one reuses the torch of its base image, as ./qkv does with any Python that has one.
ARG BASE=python:3.11-slim
FROM ${BASE}

# A compiler for the native decoding kernel.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && apt-get clean

WORKDIR /bench
RUN useradd --create-home bench && mkdir -p results /cache && chown -R bench . /cache
USER bench
COPY --chown=bench . .

# Names of extras: `data` reads the Hugging Face Hub, `ray` and `slurm` are engines.
ARG EXTRAS="hf data"
RUN ./qkv setup ${EXTRAS}

ENV QKVBENCH_CACHE=/cache
ENTRYPOINT ["./qkv"]
CMD ["--help"]
