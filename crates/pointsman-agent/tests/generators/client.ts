// What somebody does with the types that openapi-typescript has generated, and openapi-fetch: registers, finds, watches, and sees problems.
// The compiler checks it against the types, and Node.js runs it.

import createClient from "openapi-fetch";
import type { components, paths } from "./agent.d.ts";

type Problem = components["schemas"]["Problem"];
type StreamEvent = components["schemas"]["StreamEvent"];

declare const process: { argv: string[] };

const agent = createClient<paths>({ baseUrl: process.argv[2] });

function assert(condition: unknown, about: unknown): asserts condition {
  if (!condition) throw new Error(JSON.stringify(about));
}

/** The events of a stream. */
async function* events(stream: ReadableStream<Uint8Array> | null | undefined): AsyncGenerator<Partial<StreamEvent>> {
  assert(stream, "no stream");
  const decoder = new TextDecoder();
  let text = "";
  for await (const bytes of stream as unknown as AsyncIterable<Uint8Array>) {
    text += decoder.decode(bytes, { stream: true });
    const whole = text.split("\n\n");
    text = whole.pop() ?? "";
    for (const one of whole) yield Object.fromEntries(one.split("\n").map((line) => line.split(/: (.*)/s, 2)));
  }
}

async function until(stream: AsyncGenerator<Partial<StreamEvent>>, name: StreamEvent["event"]) {
  // Not by for await, which would end the stream.
  for (;;) {
    const { value, done } = await stream.next();
    assert(!done, `ended without ${name}`);
    if (value.event === name) return JSON.parse(value.data ?? "null");
  }
}

// Register.
const a = { path: { service: "ts", code: "a" } };
const { data: registered, response } = await agent.PUT("/v1/services/{service}/instances/{code}", {
  params: a,
  body: { address: "10.0.0.1:8080", weight: 3, tags: { zone: "eu-1" }, ttl: "1h" },
});
assert(response.status === 201 && registered?.role === "master" && registered.term, registered);
const term: number = registered.term;

// Watch: as answers, and as a stream.
const service = { path: { service: "ts" } };
const changes = { ...service, query: { after: 0, wait: "30s" } };
const { data: seen } = await agent.GET("/v1/services/{service}/changes", { params: changes });
assert(seen?.events[0]?.event === "snapshot" && "instances" in seen.events[0].data, seen);
assert(seen.events[0].data.instances[0]?.tags["zone"] === "eu-1", seen);
const watching = await agent.GET("/v1/services/{service}/watch", { params: service, parseAs: "stream" });
const following = events(watching.data);
assert((await until(following, "snapshot")).master === "a", "a is master");
const holding = new AbortController();
const held = await agent.POST("/v1/services/{service}/instances/{code}/hold", {
  params: { path: { service: "ts", code: "b" } },
  body: { address: "10.0.0.2:8080" },
  parseAs: "stream",
  signal: holding.signal,
});
assert((await until(events(held.data), "role")).role === "normal", "b is normal");
assert((await until(following, "put")).instance.code === "b", "b is there");
holding.abort();
assert((await until(following, "delete")).instance.code === "b", "b is gone");
await following.return(undefined);

// Find, and be balanced.
const tagged = { ...service, query: { tag: ["zone=eu-1"] } };
const { data: found } = await agent.GET("/v1/services/{service}/instances", { params: tagged });
assert(found?.length === 1 && found[0]?.address === "10.0.0.1:8080", found);
const picking = { ...service, query: { algorithm: "ip-hash", key: "10.9.9.9" } } as const;
const { data: picked } = await agent.GET("/v1/services/{service}/pick", { params: picking });
assert(picked?.instance.code === "a", picked);
const claim = { path: { claim: picked.claim }, query: { outcome: "success" } } as const;
assert((await agent.DELETE("/v1/claims/{claim}", { params: claim })).response.status === 204, "released");

// Problems.
function check(problem: Problem | undefined, status: number, name: string) {
  assert(problem?.type === `urn:pointsman:problem:${name}` && problem.status === status && problem.detail, { problem, name });
}
const nobody = { path: { service: "nobody" } };
check((await agent.GET("/v1/services/{service}/master", { params: nobody })).error, 404, "no-master");
check((await agent.GET("/v1/services/{service}/pick", { params: nobody })).error, 503, "no-instance");
check((await agent.DELETE("/v1/claims/{claim}", { params: claim })).error, 404, "no-claim");
const none = { path: { service: "ts", code: "none" } };
check((await agent.PUT("/v1/services/{service}/instances/{code}", { params: none })).error, 404, "not-registered");
const { error: stale } = await agent.POST("/v1/services/{service}/check-term", { params: service, body: { term: term - 1 } });
check(stale, 409, "stale-term");
assert(stale?.highest === term, stale);

// Ask the agent itself.
assert((await agent.GET("/livez", { parseAs: "text" })).data === "ok\n", "lives");
assert((await agent.GET("/readyz")).data?.registry === "fresh", "ready");
assert((await agent.DELETE("/v1/services/{service}/instances/{code}", { params: a })).response.status === 204, "gone");
console.log("done");
