"""A tiny ACME authority over real HTTPS on loopback that can be told to misbehave, one answer at a time."""

import base64
import json
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trustme
from aiohttp import web

PROBLEM = "application/problem+json"
TOKEN = "tokenTOKENtokenTOKEN_-"


def problem(
    kind: str, status: int = 400, headers: dict[str, str] | None = None, **fields: Any
) -> web.Response:
    """A problem document."""
    body = {"type": f"urn:ietf:params:acme:error:{kind}", **fields}
    return web.Response(status=status, text=json.dumps(body), content_type=PROBLEM, headers=headers)


class OddAuthority:
    """Answers as RFC 8555 wants it, unless `twist(method, path)` returns or raises something else.

    A nonce is good once. `seen` holds method, path, protected header and payload of every request.
    """

    def __init__(self, folder: Path) -> None:
        self.ca = trustme.CA()
        self.ca_file = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(self.ca_file)
        self.twist: Callable[[str, str], Any] = lambda _method, _path: None
        self.order: dict[str, Any] = {}
        self.authorization: dict[str, Any] = {}
        self.headers: dict[str, str] = {}
        self.meta: dict[str, Any] = {"profiles": {"classic": "90 days"}}
        self.names = {"newNonce", "newAccount", "newOrder", "keyChange", "revokeCert", "renewalInfo"}
        self.window: dict[str, Any] = {}
        self.chain = self.ca.issue_cert("a.example").cert_chain_pems[0].bytes()
        self.seen: list[tuple[str, str, dict[str, Any], Any]] = []
        self.raw: list[web.BaseRequest] = []
        self.connections = 0
        self.nonces: set[str] = set()
        self._count = 0
        self._runner: web.ServerRunner | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def paths(self, method: str = "POST") -> list[str]:
        return [path for m, path, _, _ in self.seen if m == method]

    def payload(self, path: str) -> Any:
        return next(payload for _, p, _, payload in reversed(self.seen) if p == path)

    async def start(self, **server: Any) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.ca.issue_cert("127.0.0.1").configure_cert(context)
        odd = self

        class Counting(web.Server):
            def connection_made(self, handler: web.RequestHandler, transport: Any) -> None:
                odd.connections += 1
                super().connection_made(handler, transport)

        self._runner = web.ServerRunner(Counting(self._serve, **server), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=context)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner:
            await self._runner.cleanup()

    def drop_idle_connections(self) -> None:
        """Abort every connection without a word, as a middlebox does."""
        for handler in self._runner.server.connections:
            handler.transport.abort()

    def nonce(self) -> str:
        self._count += 1
        nonce = base64.urlsafe_b64encode(f"nonce-{self._count:06}".encode()).decode().rstrip("=")
        self.nonces.add(nonce)
        return nonce

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        protected, payload = await _signed(request)
        self.seen.append((request.method, request.path, protected, payload))
        self.raw.append(request)
        answer = self.twist(request.method, request.path)
        if hasattr(answer, "__await__"):
            answer = await answer
        if answer is None:
            answer = self._answer(request, protected)
        answer.headers.setdefault("Replay-Nonce", self.nonce())
        for name, value in self.headers.items():
            answer.headers.add(name, value)
        return answer

    def _answer(self, request: web.BaseRequest, protected: dict[str, Any]) -> web.Response:
        if request.method == "POST":
            if protected["nonce"] not in self.nonces:
                return problem("badNonce")
            self.nonces.discard(protected["nonce"])
        match request.method, request.path:
            case "GET", "/dir":
                return web.json_response({n: f"{self.url}/{n}" for n in self.names} | {"meta": self.meta})
            case "GET", path if path.startswith("/renewalInfo/"):
                return web.json_response(self.window)
            case "POST", "/account/1" | "/keyChange" | "/revokeCert":
                return web.json_response({"status": "valid"})
            case "HEAD", "/newNonce":
                return web.Response()
            case "POST", "/newAccount":
                return web.json_response({"status": "valid"}, headers={"Location": f"{self.url}/account/1"})
            case "POST", "/newOrder" | "/order/1" | "/finalize/1":
                body = {**self._order(), **self.order}
                body = {k: v for k, v in body.items() if v is not ...}
                return web.json_response(body, headers={"Location": f"{self.url}/order/1"})
            case "POST", "/authz/1":
                body = {**self._authorization(), **self.authorization}
                return web.json_response({k: v for k, v in body.items() if v is not ...})
            case "POST", "/chall/1":
                return web.json_response(self._authorization()["challenges"][0])
            case "POST", "/cert/1":
                return web.Response(body=self.chain, content_type="application/pem-certificate-chain")
        return problem("malformed", 404)

    def _order(self) -> dict[str, Any]:
        return {
            "status": "pending",
            "authorizations": [f"{self.url}/authz/1"],
            "finalize": f"{self.url}/finalize/1",
            "expires": "2026-12-01T00:00:00Z",
        }

    def _authorization(self) -> dict[str, Any]:
        challenge = {"type": "http-01", "url": f"{self.url}/chall/1", "status": "pending", "token": TOKEN}
        return {
            "status": "pending",
            "identifier": {"type": "dns", "value": "a.example"},
            "challenges": [challenge],
        }


async def _signed(request: web.BaseRequest) -> tuple[dict[str, Any], Any]:
    if request.method != "POST":
        return {}, None
    body = await request.json()
    payload = _decoded(body["payload"])
    return json.loads(_decoded(body["protected"])), json.loads(payload) if payload else ""


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
