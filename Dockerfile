# The image of the DaemonSet. Without an engine: make image.
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
RUN make build VERSION=$VERSION

FROM scratch
COPY --from=build /src/bin/fairleadd /src/bin/fairlead /usr/bin/
COPY --from=build /src/bin/cni/fairlead-cni /opt/fairlead/cni/fairlead-cni
ENTRYPOINT ["/usr/bin/fairleadd"]
