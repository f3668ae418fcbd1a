"""What somebody does with a client that openapi-python-client has generated: registers, finds, watches, and sees problems.

Arguments: the agent's URL, the folder in which the package `agent_client` is.
"""

import json
import sys

url, folder = sys.argv[1:]
sys.path.insert(0, folder)

from agent_client import Client
from agent_client.api.balance import pick, release
from agent_client.api.find import instances, master, services
from agent_client.api.operate import check_term, drain, overrides
from agent_client.api.register import deregister, hold, register
from agent_client.api.system import livez, metrics, openapi
from agent_client.api.watch import changes, watch
from agent_client.models import (
    Algorithm, Polled, Problem, Registered, RegisteredRole, Registration, RegistrationTags, Snapshot, StreamEvent, TermQuestion,
)

# An answer that the document does not have is an error.
client = Client(base_url=url, raise_on_unexpected_status=True, timeout=60)


def events(stream):
    """Of a stream, as `StreamEvent` has them."""
    fields = {}
    for line in stream.iter_lines():
        name, _, value = line.partition(": ")
        if line:
            fields[name] = value
        elif "event" in fields:
            yield StreamEvent.from_dict(fields)
            fields = {}


def until(stream, name):
    return next(json.loads(event.data) for event in stream if event.event == name)


def stream(module, **arguments):
    """A call whose answer does not end: the generated functions wait for the end, what they send does not."""
    return client.get_httpx_client().stream(**module._get_kwargs(**arguments))


# Register.
tags = RegistrationTags.from_dict({"zone": "eu-1"})
registration = Registration(address="10.0.0.1:8080", weight=3, tags=tags, ttl="1h")
answer = register.sync_detailed("py", "a", client=client, body=registration)
assert answer.status_code == 201, answer
registered = answer.parsed
assert isinstance(registered, Registered) and registered.role == RegisteredRole.MASTER, registered
renewed = register.sync_detailed("py", "a", client=client)
assert renewed.status_code == 200 and renewed.parsed.term == registered.term, renewed

# Watch: as answers, and as a stream.
seen = changes.sync("py", client=client, after=0, wait="30s")
assert isinstance(seen, Polled), seen
snapshot = seen.events[0].data
assert isinstance(snapshot, Snapshot) and snapshot.instances[0].tags["zone"] == "eu-1", snapshot
with stream(watch, service="py") as answer:
    following = events(answer)
    assert until(following, "snapshot")["master"] == "a"
    with stream(hold, service="py", code="b", body=Registration(address="10.0.0.2:8080")) as held:
        assert until(events(held), "role")["role"] == "normal"
        assert until(following, "put")["instance"]["code"] == "b"
    assert until(following, "delete")["instance"]["code"] == "b"
later = changes.sync("py", client=client, after=seen.revision, wait="30s")
assert [event.event for event in later.events][:1] == ["put"], later

# Find, and be balanced.
assert [service.service for service in services.sync(client=client)] == ["py"]
assert [one.code for one in instances.sync("py", client=client, tag=["zone=eu-1"])] == ["a"]
assert instances.sync("py", client=client, tag=["zone=us-1"]) == []
assert master.sync("py", client=client).term == registered.term
picked = pick.sync("py", client=client, algorithm=Algorithm.IP_HASH, key="10.9.9.9", explain=True)
assert picked.instance.code == "a" and picked.explanation.instances[0].code == "a", picked
assert release.sync_detailed(picked.claim, client=client).status_code == 204

# Problems.
for problem, status, name in [
    (master.sync("nobody", client=client), 404, "no-master"),
    (release.sync(picked.claim, client=client), 404, "no-claim"),
    (register.sync("py", "none", client=client), 404, "not-registered"),
    (register.sync("py", "c", client=client, body=Registration(address="0.0.0.0")), 400, "bad-request"),
    (drain.sync("py", "none", client=client), 404, "unknown-instance"),
    (pick.sync("nobody", client=client), 503, "no-instance"),
    (changes.sync("py", client=client, wait="1y"), 400, "bad-request"),
]:
    assert isinstance(problem, Problem), (name, problem)
    assert (problem.status, problem.type_) == (status, f"urn:pointsman:problem:{name}"), problem
    assert problem.title and problem.detail, problem
stale = check_term.sync("py", client=client, body=TermQuestion(term=registered.term - 1))
assert isinstance(stale, Problem) and stale.highest == registered.term, stale

# Operate, and ask the agent itself.
assert drain.sync_detailed("py", "a", client=client).status_code == 204
assert [(one.code, one.drained, one.weight) for one in overrides.sync(client=client)] == [("a", True, None)]
assert livez.sync(client=client) == "ok\n"
assert "pointsman_agent_requests_total" in metrics.sync(client=client)
assert openapi.sync(client=client)["openapi"] == "3.1.0"
assert deregister.sync_detailed("py", "a", client=client).status_code == 204
print("done")
