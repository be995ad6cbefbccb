"""From an HTTP request to what serves it, and back: the doorway of the embedded API server.

`Dispatcher.handle` is the one handler that aiohttp calls. It checks the token, reads what the path and the query mean,
calls the part that knows how, and turns an `ApiError` into its Status.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from contextlib import aclosing
from typing import Any

from aiohttp import web

from devcluster.apiserver import access, errors
from devcluster.apiserver.bodies import Body, decode_object, decode_patch, expect_object, media_type
from devcluster.apiserver.credentials import USER_SEPARATOR
from devcluster.apiserver.documents import Documents
from devcluster.apiserver.errors import ApiError
from devcluster.apiserver.interception import Call, Interceptor
from devcluster.apiserver.operations import Answer, Operations, Stream
from devcluster.apiserver.requests import QueryOptions, RequestTarget, parse_query, parse_target
from devcluster.apiserver.storage import encode

_PUBLIC = frozenset({"/healthz", "/livez", "/readyz", "/version"})
_METHOD_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch"}
_logger = logging.getLogger(__name__)


class Dispatcher:
    def __init__(self, operations: Operations, documents: Documents, interceptor: Interceptor, token: str) -> None:
        self._operations = operations
        self._documents = documents
        self._interceptor = interceptor
        self._token = token.encode()
        self._streaming: set[asyncio.Task[Any]] = set()
        self._stopping = False

    def end_streams(self) -> None:
        """Ends all watches and followed logs as if their time were over; for when the server stops."""
        self._stopping = True
        for task in self._streaming:
            task.cancel()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await self._serve(request)
        except ApiError as error:
            return web.Response(
                body=encode(error.status()), status=error.code, headers=error.headers, content_type="application/json"
            )
        except (ConnectionError, web.HTTPException):
            raise
        except Exception as error:
            _logger.exception("%s %s failed", request.method, request.path)
            failure = errors.internal(f"{type(error).__name__}: {error}")
            return web.Response(body=encode(failure.status()), status=500, content_type="application/json")

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path.rstrip("/") or "/"
        user = ""
        if path not in _PUBLIC and not any(path.startswith(f"{public}/") for public in _PUBLIC):
            user = self._authenticate(request)
        target = parse_target(path)
        if target is not None and target.plural:
            return await self._serve_resource(request, target, user)
        if path.startswith("/debug/"):
            content = self._interceptor.answer(request.method, path, await _read(request))
            if content is None:
                raise errors.no_such_path()
            return web.Response(body=encode(content), content_type="application/json")
        if request.method not in ("GET", "HEAD"):
            raise errors.method_not_allowed() if target else errors.no_such_path()
        document = self._documents.find(
            path, request.headers.get("Accept", ""), request.headers.get("If-None-Match", "")
        )
        return web.Response(body=document.body, status=document.status, headers=document.headers)

    def _authenticate(self, request: web.BaseRequest) -> str:
        """The name that follows the token, or the administrator's: names tell who calls, all may do the same."""
        scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
        given, _, name = credentials.strip().partition(USER_SEPARATOR)
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), self._token):
            raise errors.unauthorized()
        return name or access.ADMINISTRATOR

    async def _serve_resource(self, request: web.BaseRequest, target: RequestTarget, user: str) -> web.StreamResponse:
        options = parse_query(request.query)
        verb = _verb(request.method, target, options)
        if (review := access.find_review(target.group, target.version, target.plural)) is not None:
            if verb != "create":
                raise errors.method_not_allowed()
            body = expect_object(await self._read_object(request, options))
            reviewed = access.answer(review, body, user=user, now=self._operations.now())
            return _respond(Answer(body=encode(reviewed), code=201))
        served = self._operations.find_resource(target)
        call = Call(user=user, verb=verb, target=target, resource=served.qualified)
        await self._interceptor.before(call)
        operations = self._operations
        answer: Answer | Stream
        manager = options.field_manager or _default_manager(request.headers.get("User-Agent", ""))
        match verb:
            case "get":
                answer = operations.get(served, target, request.query, request.headers.get("Accept", ""))
            case "list":
                answer = operations.list(served, target, options, request.query, request.headers.get("Accept", ""))
            case "watch":
                answer = operations.watch(served, target, options, request.query, request.headers.get("Accept", ""))
                answer = Stream(lines=self._interceptor.disturb(call, answer.lines), content_type=answer.content_type)
            case "create":
                answer = operations.create(served, target, options, await self._read_object(request, options), manager)
            case "update":
                answer = operations.replace(served, target, options, await self._read_object(request, options), manager)
            case "patch":
                data = await _read(request)
                duplicates = options.field_validation != "Ignore"
                kind, content = decode_patch(data, request.headers.get("Content-Type", ""), find_duplicates=duplicates)
                answer = operations.patch(served, target, options, kind, content, manager)
            case "delete":
                answer = operations.delete(served, target, await _read_optional(request), request.query)
            case _:
                answer = operations.delete_collection(
                    served, target, options, await _read_optional(request), request.query
                )
        self._interceptor.after(call, created=isinstance(answer, Answer) and answer.code == 201)
        if isinstance(answer, Stream):
            return await self._send(request, answer)
        return _respond(answer)

    async def _send(self, request: web.BaseRequest, stream: Stream) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": stream.content_type, "Cache-Control": "no-cache, private"}
        )
        response.enable_chunked_encoding()
        await response.prepare(request)
        task = asyncio.current_task()
        assert task is not None
        self._streaming.add(task)
        try:
            async with aclosing(stream.lines) as lines:
                async for line in lines:
                    await response.write(line)
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            task.uncancel()
        except Exception as error:
            if not isinstance(error, ConnectionError):
                _logger.exception("%s %s failed", request.method, request.path)
            # The head is out already: only a broken body can tell the client.
            if request.transport is not None:
                request.transport.abort()
            return response
        finally:
            self._streaming.discard(task)
        await response.write_eof()
        return response

    async def _read_object(self, request: web.BaseRequest, options: QueryOptions) -> Body:
        data = await _read(request)
        return decode_object(
            data, request.headers.get("Content-Type", ""), find_duplicates=options.field_validation != "Ignore"
        )


def _verb(method: str, target: RequestTarget, options: QueryOptions) -> str:
    match method:
        case "GET" | "HEAD":
            if options.watch and not target.subresource:
                return "watch"
            return "get" if target.name else "list"
        case "DELETE":
            return "delete" if target.name else "deletecollection"
        case "POST" if target.name and not target.subresource:
            raise errors.method_not_allowed()
        case "PUT" | "PATCH" if not target.name:
            raise errors.method_not_allowed()
        case "POST" | "PUT" | "PATCH":
            return _METHOD_VERBS[method]
        case _:
            raise errors.method_not_allowed()


def _default_manager(user_agent: str) -> str:
    """Who owns the fields of a write that names no manager: the client program."""
    return user_agent.partition("/")[0][:128] or "unknown"


async def _read(request: web.BaseRequest) -> bytes:
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise ApiError(413, "RequestEntityTooLarge", "Request entity too large: limit is 3145728") from None


async def _read_optional(request: web.BaseRequest) -> dict[str, Any] | None:
    """The DeleteOptions of a body, when there is one."""
    data = await _read(request)
    if not data.strip():
        return None
    content_type = media_type(request.headers.get("Content-Type", ""))
    return expect_object(decode_object(data, content_type, find_duplicates=False))


def _respond(answer: Answer) -> web.Response:
    headers = [("Warning", f"299 - {json.dumps(warning, ensure_ascii=False)}") for warning in answer.warnings]
    response = web.Response(body=answer.body, status=answer.code, content_type=answer.content_type)
    for name, value in headers:
        response.headers.add(name, value)
    return response
