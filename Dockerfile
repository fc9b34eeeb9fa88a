# medmoco with PyTorch for the CPU or for CUDA, without data. From a checkout:
#
#   docker build --tag medmoco .
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/work" medmoco demo
#
# For a GPU, choose the index of the CUDA version at https://pytorch.org, and give the data workers shared memory:
#
#   docker build --tag medmoco:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#   docker run --rm --gpus all --shm-size 8g --user "$(id -u):$(id -g)" --volume "$PWD:/work" \
#     --volume /data/films:/data/films:ro medmoco:cuda pretrain
#
# Settings, runs and reports are in the working folder, /work; --user makes them yours.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Versions are the newest within the ranges of pyproject.toml.
# hadolint ignore=DL3013
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir --index-url "${TORCH_INDEX}" torch torchvision \
    && pip install --no-cache-dir /wheels/*.whl \
    && useradd --create-home --uid 1000 medmoco
# With --user, the home folder cannot be written.
ENV MPLCONFIGDIR=/tmp/matplotlib
USER 1000
WORKDIR /work
ENTRYPOINT ["medmoco"]
CMD ["--help"]
