# docker build -t deskfeed .
#
# Builds with the classic builder and with BuildKit. The image holds one binary,
# the C library it needs and CA certificates: no shell, no package manager, and no
# PostgreSQL, so it wants DATABASE_URL (or DATABASE_URL_FILE).
# For reproducible releases give both bases with their digest (name@sha256:..).
ARG RUST_IMAGE=rust:1.95-slim-bookworm
ARG BASE_IMAGE=debian:bookworm-slim

# --- dependencies: built again only when Cargo.toml or Cargo.lock changes ------
FROM ${RUST_IMAGE} AS dependencies
WORKDIR /src
ENV CARGO_INCREMENTAL=0 CARGO_NET_RETRY=5 CARGO_TERM_PROGRESS_WHEN=never
COPY Cargo.toml Cargo.lock ./
COPY crates/bench/Cargo.toml crates/bench/
# Cargo wants a target of each member of the workspace, and the file of each [[bench]] that Cargo.toml names, though
# it builds none of them: empty ones do, and stay.
RUN mkdir src benches crates/bench/src \
 && echo 'fn main() {}' > src/main.rs \
 && echo 'fn main() {}' > crates/bench/src/main.rs \
 && : > src/lib.rs \
 && sed -n '/^\[\[bench\]\]/,/^$/s/^name *= *"\(.*\)"$/\1/p' Cargo.toml > benches.txt \
 && while read -r bench; do : > "benches/$bench.rs"; done < benches.txt \
 && cargo build --locked --release --bin deskfeed \
 && cargo clean --locked --release --package deskfeed \
 && rm -r src benches.txt

# --- the binary ----------------------------------------------------------------
FROM dependencies AS build
# All that .dockerignore lets through: sources, and migrations, which are compiled in.
COPY . .
RUN cargo build --locked --release --bin deskfeed

# --- what a dynamically linked program needs of Debian -------------------------
FROM ${BASE_IMAGE} AS files
# Unpinned on purpose: the newest security fixes of this Debian release.
# hadolint ignore=DL3008
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates libc6 libgcc-s1 \
 && rm -rf /var/lib/apt/lists/*
# status.d is where scanners look for packages in images without a package manager.
RUN set -eu; out=/out; lib=/lib/$(uname -m)-linux-gnu; \
    mkdir -p "$out/etc/ssl/certs" "$out/var/lib/dpkg/status.d"; \
    install -d -m 1777 "$out/tmp"; \
    for file in /lib64/ld-linux-*.so.* /lib/ld-linux-*.so.* \
        "$lib"/libc.so.6 "$lib"/libm.so.6 "$lib"/libgcc_s.so.1 "$lib"/libresolv.so.2 \
        "$lib"/libnss_files.so.2 "$lib"/libnss_dns.so.2 \
        "$lib"/libpthread.so.0 "$lib"/libdl.so.2 "$lib"/librt.so.1; do \
        if [ -e "$file" ]; then cp -L --parents "$file" "$out"; fi; \
    done; \
    cp /etc/ssl/certs/ca-certificates.crt "$out/etc/ssl/certs/"; \
    cp -L /etc/os-release "$out/etc/os-release"; \
    echo 'hosts: files dns' > "$out/etc/nsswitch.conf"; \
    printf '%s\n' 'root:x:0:0:root:/:/nonexistent' 'deskfeed:x:65532:65532:deskfeed:/nonexistent:/nonexistent' > "$out/etc/passwd"; \
    printf '%s\n' 'root:x:0:' 'deskfeed:x:65532:' > "$out/etc/group"; \
    for package in libc6 libgcc-s1 ca-certificates base-files; do \
        dpkg-query --status "$package" > "$out/var/lib/dpkg/status.d/$package"; \
    done

# --- the image -----------------------------------------------------------------
FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="deskfeed" \
      org.opencontainers.image.description="A persistent event store for customer-service desks: PostgreSQL, HTTP long polling, nothing acknowledged is ever lost" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=files /out /
COPY --from=build /src/target/release/deskfeed /deskfeed
USER 65532:65532
# The binary starts with the libraries above, as this user; else the build ends here.
RUN ["/deskfeed", "--version"]
ENV DESKFEED_LISTEN=0.0.0.0:8080
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s --retries=3 CMD ["/deskfeed", "healthcheck"]
ENTRYPOINT ["/deskfeed"]
CMD ["serve"]
