"""How a server is reached: its URL, connections that are reused or refused, TLS, and the checks before a run."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from loadtest.errors import TargetError, UsageError
from loadtest.http.address import Address, parse_url, request_head, resolve, tls_context
from loadtest.http.pool import REUSE_WITHIN_S, ConnectFailed, Endpoint, Pool
from loadtest.http.probe import ServedModel, find_model, get, open_endpoint

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
Serve = Callable[..., Awaitable["ScriptedServer"]]


class ScriptedServer:
    """Sends one response for each request; `hang_up` closes the connection after it."""

    def __init__(self, response: bytes, *, hang_up: bool) -> None:
        self.response = response
        self.requests: list[bytes] = []
        self.connections = 0
        self.port = 0
        self._hang_up = hang_up

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(self.response)
                if self._hang_up:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts scripted servers on loopback."""
    async with AsyncExitStack() as stack:

        async def start(
            response: bytes = OK, *, hang_up: bool = False, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
        ) -> ScriptedServer:
            scripted = ScriptedServer(response, hang_up=hang_up)
            server = await asyncio.start_server(scripted.serve, host, 0, ssl=tls)
            stack.callback(server.close)
            scripted.port = server.sockets[0].getsockname()[1]
            return scripted

        yield start


def endpoint_at(port: int, host: str = "127.0.0.1") -> Endpoint:
    return Endpoint(Address(tls=False, host=host, port=port), host)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def response(content: object, status: str = "200 OK", headers: str = "") -> bytes:
    body = json.dumps(content).encode()
    return f"HTTP/1.1 {status}\r\n{headers}content-length: {len(body)}\r\n\r\n".encode() + body


class TestAddress:
    @pytest.mark.parametrize(
        ("url", "address", "host_header"),
        [
            ("localhost:8000", Address(tls=False, host="localhost", port=8000), "localhost:8000"),
            ("http://h", Address(tls=False, host="h", port=80), "h"),
            ("https://h/", Address(tls=True, host="h", port=443), "h"),
            ("https://h:80", Address(tls=True, host="h", port=80), "h:80"),
            ("http://h:1/v1", Address(tls=False, host="h", port=1), "h:1"),
            ("http://h:1/a/b/v1/", Address(tls=False, host="h", port=1, path="/a/b"), "h:1"),
            ("http://[::1]:8000", Address(tls=False, host="::1", port=8000), "[::1]:8000"),
            ("https://[fe80::1]", Address(tls=True, host="fe80::1", port=443), "[fe80::1]"),
        ],
    )
    def test_a_url_is_split(self, url: str, address: Address, host_header: str) -> None:
        assert parse_url(url) == address
        assert address.host_header == host_header
        assert parse_url(address.url) == address

    @pytest.mark.parametrize("url", ["ftp://h", "http://", "http://:80", "http://h:port", "http://h:99999"])
    def test_what_is_no_url_is_an_error_with_an_example(self, url: str) -> None:
        with pytest.raises(UsageError, match=r"http://host:8000"):
            parse_url(url)

    def test_names_are_resolved_and_unknown_ones_are_an_error(self) -> None:
        assert resolve(parse_url("http://127.0.0.1:1")) == ["127.0.0.1"]
        assert resolve(parse_url("http://[::1]:1")) == ["::1"]
        with pytest.raises(TargetError, match=r"no address for the name 'no-such-host.invalid'.*--url"):
            resolve(parse_url("http://no-such-host.invalid"))

    def test_the_head_of_a_request_has_the_host_and_the_length(self) -> None:
        address = parse_url("http://h:1/base")
        head = request_head(address, "POST", "/v1/x", {"authorization": "Bearer k"}, 5)
        assert head == (
            b"POST /base/v1/x HTTP/1.1\r\nHost: h:1\r\nauthorization: Bearer k\r\n"
            b"Content-Type: application/json\r\nContent-Length: 5\r\n\r\n"
        )
        assert b"Content" not in request_head(address, "GET", "/", {})

    def test_a_ca_file_that_cannot_be_read_is_an_error(self, tmp_path: Path) -> None:
        address = parse_url("https://h")
        with pytest.raises(UsageError, match=r"cannot read the CA file.*--ca-file"):
            tls_context(address, verify=True, ca_file=str(tmp_path / "absent.pem"))
        (tmp_path / "bad.pem").write_text("no certificate")
        with pytest.raises(UsageError, match="--ca-file"):
            tls_context(address, verify=True, ca_file=str(tmp_path / "bad.pem"))
        assert tls_context(parse_url("http://h"), verify=True, ca_file="absent") is None


class TestPool:
    async def test_a_released_connection_is_reused_while_it_is_fresh(self, serve: Serve) -> None:
        server = await serve()
        pool = Pool(endpoint_at(server.port))
        first, opening_ns = await pool.acquire()
        assert opening_ns > 0
        pool.release(first)
        assert await pool.acquire() == (first, 0)
        pool.release(first)
        first.idle_since_ns -= int((REUSE_WITHIN_S - 0.5) * 1e9)
        assert await pool.acquire() == (first, 0)
        pool.release(first)
        first.idle_since_ns -= int(1e9)
        second, opening_ns = await pool.acquire()
        assert second is not first and opening_ns > 0
        assert first.closed
        pool.close()
        assert second.closed

    async def test_a_connection_that_the_server_closed_is_not_reused(self, serve: Serve) -> None:
        server = await serve(OK, hang_up=True)
        pool = Pool(endpoint_at(server.port))
        connection, _ = await pool.acquire()
        await connection.send_request(b"GET / HTTP/1.1\r\n\r\n", 1).done
        pool.release(connection)
        async with asyncio.timeout(10):
            while not connection.closed:  # noqa: ASYNC110  # a connection sets no event when it is lost
                await asyncio.sleep(0)
        other, _ = await pool.acquire()
        assert other is not connection
        pool.close()

    async def test_without_reuse_every_request_has_a_connection_of_its_own(self, serve: Serve) -> None:
        server = await serve()
        pool = Pool(endpoint_at(server.port), reuse=False)
        for _ in range(3):
            connection, opening_ns = await pool.acquire()
            await connection.send_request(b"GET / HTTP/1.1\r\n\r\n", 1).done
            pool.release(connection)
            assert opening_ns > 0 and connection.closed
        assert server.connections == 3
        pool.close()

    async def test_preconnecting_leaves_idle_connections(self, serve: Serve) -> None:
        server = await serve()
        pool = Pool(endpoint_at(server.port))
        await pool.preconnect(3)
        taken = [await pool.acquire() for _ in range(4)]
        assert [opening_ns > 0 for _, opening_ns in taken] == [False, False, False, True]
        assert len({connection for connection, _ in taken}) == 4
        pool.close()
        assert all(connection.closed for connection, _ in taken)

    async def test_a_refused_connection_says_so(self) -> None:
        with pytest.raises(ConnectFailed, match=r"(?i)refused|connect"):
            await Pool(endpoint_at(closed_port())).acquire()

    async def test_a_connection_that_takes_too_long_is_a_failure(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts nothing, so TLS never begins
            endpoint = Endpoint(Address(tls=True, host="localhost", port=silent.getsockname()[1]), "127.0.0.1")
            with pytest.raises(ConnectFailed, match=r"no connection within 0.05 s"):
                await Pool(endpoint, connect_timeout_s=0.05).acquire()

    async def test_a_request_over_ipv6_is_answered(self, serve: Serve) -> None:
        server = await serve(host="::1")
        endpoint = await open_endpoint(f"http://[::1]:{server.port}")
        pool = Pool(endpoint)
        assert (await get(pool, endpoint.address, "/", {})).body == b"ok"
        assert f"Host: [::1]:{server.port}\r\n".encode() in server.requests[0]
        pool.close()

    async def test_a_large_request_arrives_in_full(self) -> None:
        received = asyncio.get_running_loop().create_future()

        async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            received.set_result(len(await reader.readexactly(3_000_000)))
            writer.write(OK)
            writer.close()

        server = await asyncio.start_server(count, "127.0.0.1", 0)
        pool = Pool(endpoint_at(server.sockets[0].getsockname()[1]))
        connection, _ = await pool.acquire()
        exchange = connection.send_request(bytes(3_000_000), 1)
        await exchange.done
        assert await received == 3_000_000 and exchange.status == 200
        pool.close()
        server.close()


class TestTls:
    @pytest.fixture
    async def certificate(self, tmp_path: Path) -> tuple[Path, Path]:
        """A self-signed certificate for localhost, and its key."""
        key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
        make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
        names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
        maker = await asyncio.create_subprocess_exec(*make.split(), *names, stderr=asyncio.subprocess.DEVNULL)
        assert await maker.wait() == 0
        return certificate, key

    async def test_requests_over_tls_are_answered_and_the_name_is_checked(
        self, serve: Serve, certificate: tuple[Path, Path]
    ) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server = await serve(response({"data": [{"id": "m"}]}), tls=context)
        endpoint = await open_endpoint(f"https://localhost:{server.port}", ca_file=str(certificate[0]))
        assert await find_model(endpoint, {}, None) == ServedModel("m")
        with pytest.raises(TargetError, match=r"not trusted.*--ca-file"):
            await open_endpoint(f"https://127.0.0.1:{server.port}", ca_file=str(certificate[0]))
        with pytest.raises(TargetError, match=r"not trusted.*--insecure"):
            await open_endpoint(f"https://localhost:{server.port}")
        assert (await open_endpoint(f"https://127.0.0.1:{server.port}", verify=False)).ip == "127.0.0.1"

    async def test_tls_to_a_plain_server_has_a_remedy(self) -> None:
        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        with pytest.raises(TargetError, match=r"TLS.*Try http://"):
            await open_endpoint(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        server.close()


class TestProbe:
    async def test_an_endpoint_is_an_address_that_accepts(self, serve: Serve) -> None:
        server = await serve()
        endpoint = await open_endpoint(f"http://127.0.0.1:{server.port}/v1")
        assert endpoint == endpoint_at(server.port)

    async def test_a_server_that_is_not_there_has_a_remedy(self) -> None:
        with pytest.raises(TargetError, match=r"cannot reach http://127.0.0.1:\d+: .*Is the server running"):
            await open_endpoint(f"http://127.0.0.1:{closed_port()}")

    async def test_a_get_needs_a_connection(self) -> None:
        endpoint = endpoint_at(closed_port())
        with pytest.raises(TargetError, match=r"cannot reach http://.*/v1/models: .*Is the server running"):
            await find_model(endpoint, {}, None)

    async def test_the_first_model_or_the_named_one_is_found(self, serve: Serve) -> None:
        models = {"data": [{"id": "a", "root": "/models/a", "max_model_len": 4096}, {"id": "b", "root": None}]}
        server = await serve(response(models))
        endpoint = endpoint_at(server.port)
        assert await find_model(endpoint, {"authorization": "Bearer k"}, None) == ServedModel("a", "/models/a", 4096)
        assert await find_model(endpoint, {}, "b") == ServedModel("b")
        assert server.requests[0].startswith(b"GET /v1/models HTTP/1.1\r\n")
        assert b"authorization: Bearer k\r\n" in server.requests[0]
        with pytest.raises(TargetError, match=r"does not list the model 'c'. It serves: a, b"):
            await find_model(endpoint, {}, "c")

    @pytest.mark.parametrize("answer", [response({"data": []}), response([1]), response({}, "404 Not Found")])
    async def test_a_server_without_a_list_of_models_needs_the_name(self, serve: Serve, answer: bytes) -> None:
        endpoint = endpoint_at((await serve(answer)).port)
        with pytest.raises(TargetError, match=r"lists no model \(HTTP \d+\). Name one with --model"):
            await find_model(endpoint, {}, None)
        assert await find_model(endpoint, {}, "mine") == ServedModel("mine")

    @pytest.mark.parametrize(
        ("status", "headers", "problem"),
        [
            ("401 Unauthorized", "", r"refuses the key \(HTTP 401\).*--api-key"),
            ("403 Forbidden", "", r"refuses the key \(HTTP 403\)"),
            ("503 Unavailable", "", r"cannot serve now \(HTTP 503\). Try again"),
            ("429 Too Many", "retry-after: 7\r\n", r"cannot serve now \(HTTP 429\).*in 7 s"),
            ("529 Overloaded", "", r"HTTP 529"),
        ],
    )
    async def test_a_server_that_refuses_has_a_remedy(
        self, serve: Serve, status: str, headers: str, problem: str
    ) -> None:
        endpoint = endpoint_at((await serve(response({}, status, headers))).port)
        with pytest.raises(TargetError, match=problem):
            await find_model(endpoint, {}, "m")

    @pytest.mark.parametrize(
        ("answer", "problem"),
        [
            (b"SSH-2.0-OpenSSH\r\n\r\n", r"not an HTTP response.*write https://"),
            (b"", r"closed the connection before any answer"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi", r"after 2 bytes of the body"),
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n\r\n0\r\n\r\n", r"not a chunk size"),
        ],
    )
    async def test_what_is_not_a_complete_http_response_is_an_error(
        self, serve: Serve, answer: bytes, problem: str
    ) -> None:
        endpoint = endpoint_at((await serve(answer, hang_up=True)).port)
        with pytest.raises(TargetError, match=problem):
            await find_model(endpoint, {}, None)

    async def test_a_server_that_does_not_answer_is_an_error(self, serve: Serve) -> None:
        server = await serve(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n")
        address = parse_url(f"http://127.0.0.1:{server.port}")
        pool = Pool(endpoint_at(server.port))
        with pytest.raises(
            TargetError, match=r"no answer from http://.*/x within 0.05 s. Is the server still starting"
        ):
            await get(pool, address, "/x", {}, timeout_s=0.05)
        server.response = OK
        assert (await get(pool, address, "/x", {})).body == b"ok"
        assert server.connections == 2, "the connection of the late response is not reused"
        pool.close()
