"""A server and a client of gRPC whose messages are bytes: `server NAME PORT`, `client TARGET METHOD MESSAGE...`."""

import json
import sys
from concurrent import futures

import grpc


class Handler(grpc.GenericRpcHandler):
    def __init__(self, name):
        self.name = name.encode()
        self.methods = {
            "/test.Test/Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "/test.Test/Down": grpc.unary_stream_rpc_method_handler(self.down),
            "/test.Test/Up": grpc.stream_unary_rpc_method_handler(self.up),
            "/test.Test/Both": grpc.stream_stream_rpc_method_handler(self.both),
            "/test.Test/Fail": grpc.unary_unary_rpc_method_handler(self.fail),
            "/test.Test/Late": grpc.unary_stream_rpc_method_handler(self.late),
        }

    def service(self, details):
        return self.methods.get(details.method)

    def unary(self, request, context):
        context.set_trailing_metadata((("x-origin", self.name.decode()),))
        return b"unary " + request

    def down(self, request, context):
        for number in range(int(request)):
            yield b"%d" % number

    def up(self, requests, context):
        return b"%d" % sum(len(request) for request in requests)

    def both(self, requests, context):
        for request in requests:
            yield b"both " + request

    def fail(self, request, context):
        context.set_trailing_metadata((("x-why", "asked for"),))
        context.abort(grpc.StatusCode.NOT_FOUND, "no " + request.decode())

    def late(self, request, context):
        yield b"first"
        context.abort(grpc.StatusCode.ABORTED, "in the middle")


def value(text):
    return b"x" * int(text[5:]) if text.startswith("size:") else text.encode()


def client(target, method, messages):
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)]
    messages = [value(message) for message in messages]
    path = f"/test.Test/{method}"
    said = {"answers": [], "code": "OK", "details": "", "trailers": {}}
    with grpc.insecure_channel(target, options) as channel:
        sends, receives = method in ("Up", "Both"), method in ("Down", "Both", "Late")
        kinds = {
            (False, False): channel.unary_unary,
            (False, True): channel.unary_stream,
            (True, False): channel.stream_unary,
            (True, True): channel.stream_stream,
        }
        call = kinds[sends, receives](path)
        request = iter(messages) if sends else messages[0]
        try:
            if receives:
                answers = call(request, timeout=20)
                for answer in answers:
                    said["answers"].append(answer.decode())
                trailers = answers.trailing_metadata()
            else:
                answer, details = call.with_call(request, timeout=20)
                said["answers"].append(answer.decode() if len(answer) < 1000 else f"size:{len(answer)}")
                trailers = details.trailing_metadata()
        except grpc.RpcError as error:
            said["code"], said["details"] = error.code().name, error.details()
            trailers = error.trailing_metadata()
        said["trailers"] = {key: text for key, text in trailers or () if isinstance(text, str)}
    print(json.dumps(said))


what, *rest = sys.argv[1:]
if what == "server":
    server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((Handler(rest[0]),))
    assert server.add_insecure_port(f"127.0.0.1:{rest[1]}")
    server.start()
    server.wait_for_termination()
else:
    client(rest[0], rest[1], rest[2:])
