"""What `hutch etl serve` answers: pushes, their schema, metrics and health."""

from __future__ import annotations

import asyncio
import zlib
from typing import Any, TypeVar

from cryptography import x509
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from etl.frames import Adapter, SourceError
from etl.load import BusyError, Report
from etl.push import FAULTS_TOLD, Batch, Sent, accepts, faults, schema
from etl.source import Source
from etl.sync_proposal import Sync, held, to_extract
from hub.database.engine import DatabaseError

PATIENCE_SECONDS = 30.0

routes = APIRouter()
Body = TypeVar("Body", bound=BaseModel)


class PeerProtocol(H11Protocol):
    """Tells a request the subject of the certificate that its connection was opened with (RFC 4514), which uvicorn does not."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        shown = tls.getpeercert(binary_form=True) if tls else None
        self.app_state = {"subject": x509.load_der_x509_certificate(shown).subject.rfc4514_string() if shown else None}


@routes.post("/v1/batches/{name}")
async def take_batch(name: str, request: Request) -> Response:
    source = _admit(name, request)
    batch = await _read(Batch, request)
    return await _answer(request, source, Sent("push", batch.extract), batch=batch.batch)


@routes.post("/v1/ispyb/{name}/sync_proposal")
@routes.post("/v1/ispyb/{name}/{prefix:path}webservices/userportalsync/sync_proposal")
async def take_proposal(name: str, request: Request) -> Response:
    source = _admit(name, request)
    body = await _read(Sync, request)
    engine = request.app.state.service.engine
    return await _answer(request, source, Sent("sync_proposal", lambda: to_extract(body, held(engine, name, body))))


@routes.get("/v1/schema")
async def batch_schema() -> dict[str, Any]:
    return schema()


@routes.get("/metrics")
async def metrics(request: Request) -> Response:
    text = await asyncio.to_thread(request.app.state.service.metrics.text)
    return Response(text, media_type="text/plain; version=0.0.4")


@routes.get("/health")
async def health(request: Request) -> Response:
    fresh = await asyncio.to_thread(request.app.state.service.metrics.freshness)
    return JSONResponse({"fresh_seconds": {f"{source} ({kind})": round(seconds) for (source, kind), seconds in fresh.items()}})


def _admit(name: str, request: Request) -> Source:
    """The source, if a certificate or a token of the sender may push to it. Whether there is such a source, others do not learn."""
    subject = request.state.subject
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if not subject and not token:
        raise HTTPException(401, "show a client certificate, or a token of the source", {"WWW-Authenticate": "Bearer"})
    service = request.app.state.service
    source, _ = service.sources().get(name, (None, None))
    tokens = service.folder / f"{name}.tokens"
    if source and (subject in source.subjects or (scheme.lower() == "bearer" and accepts(tokens, token))):
        return source
    raise HTTPException(403, f"neither this certificate nor this token may push to {name!r}")


async def _read(shape: type[Body], request: Request) -> Body:
    body = await _unpacked(request, request.app.state.service.hutch.push_limit_mb * 1_000_000)
    try:
        return await asyncio.to_thread(shape.model_validate_json, bytes(body))
    except ValidationError as error:
        raise HTTPException(422, faults(error)) from None


async def _unpacked(request: Request, most: int) -> bytearray:
    """The body; of one that unpacks to more, no more than that is ever unpacked."""
    coding = request.headers.get("content-encoding", "identity")
    if coding not in ("identity", "gzip"):
        raise HTTPException(415, f"content-encoding {coding!r} is not known; send gzip, or without")
    unpacking = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16) if coding == "gzip" else None
    body = bytearray()
    try:
        async for part in request.stream():
            body += unpacking.decompress(part, most + 1 - len(body)) if unpacking else part
            if len(body) > most:
                raise HTTPException(413, f"more than {most} bytes, unpacked; send several batches, each with its scopes")
    except zlib.error as error:
        raise HTTPException(422, f"the body is not gzip: {error}") from None
    except ClientDisconnect:
        raise HTTPException(400, "the connection ended before the body did") from None
    if unpacking and (not unpacking.eof or unpacking.unused_data):
        raise HTTPException(422, "the body is not one whole gzip stream")
    return body


async def _answer(request: Request, source: Source, adapter: Adapter, **options: Any) -> Response:
    service = request.app.state.service
    try:
        report: Report = await service.load(PATIENCE_SECONDS, source, adapter, **options)
    except BusyError:
        raise
    except SourceError as error:
        await service.tell(f"a push to {source.name}", str(error))
        raise
    await service.tell(f"a push to {source.name}", "; ".join(report.objections))
    told = {name: getattr(report, name) for name in ("source", "batch", "run_id", "repeated", "counts", "objections")}
    rejections = report.rejections.drop("skipped").head(FAULTS_TOLD).to_dicts()
    return JSONResponse({**told, "rejections": rejections}, 409 if report.objections else 200)


async def say(_request: Request, error: Exception) -> Response:
    """What is wrong with the whole of what was sent, or that it should be sent again later."""
    if isinstance(error, BusyError | DatabaseError):
        return JSONResponse({"detail": str(error)}, 503, {"Retry-After": "60"})
    return JSONResponse({"detail": str(error)}, 422)
