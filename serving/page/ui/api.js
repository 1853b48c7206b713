// The service as this page sees it: JSON requests, one stream, one kind of error.

const KEY = "fuseline-key";

/** An answer that is not 2xx, an error event of a stream, or no answer at all. */
export class ApiError extends Error {
  constructor({ message, code, status = 0, param = null, requestId = null }) {
    super(message);
    Object.assign(this, { code, status, param, requestId });
  }
}

export function key() {
  return sessionStorage.getItem(KEY) ?? "";
}

export function setKey(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

let askForKey = () => {};

/** Set what is done when the service asks for a key: called with the error. */
export function onKeyNeeded(action) {
  askForKey = action;
}

async function send(path, { body, signal } = {}) {
  const headers = {};
  if (body !== undefined) headers["content-type"] = "application/json";
  if (key()) headers.authorization = `Bearer ${key()}`;
  let answer;
  try {
    answer = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    // A key with characters that no header can carry fails before anything is sent.
    const message = error instanceof TypeError && /header|ISO-8859|ByteString/i.test(error.message)
      ? "The key has characters that cannot be sent." : "The service does not answer.";
    throw new ApiError({ message, code: "no_answer" });
  }
  if (answer.ok) return answer;
  const failure = await failureOf(answer);
  if (failure.status === 401) askForKey(failure);
  throw failure;
}

async function failureOf(answer) {
  const requestId = answer.headers.get("x-request-id");
  let error = {};
  try {
    error = (await answer.json()).error ?? {};
  } catch {
    // Not from this service (a proxy, say): the status is all there is.
  }
  return new ApiError({
    message: error.message ?? `The service answered ${answer.status}.`,
    code: error.code ?? "unknown", status: answer.status, param: error.param ?? null, requestId,
  });
}

/** GET or POST JSON and return { value, requestId }. */
export async function call(path, options) {
  const answer = await send(path, options);
  const requestId = answer.headers.get("x-request-id");
  try {
    return { value: await answer.json(), requestId };
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError({ message: "The answer is not JSON.", code: "bad_answer", status: answer.status, requestId });
  }
}

/** POST a chat request and yield its chunks; returning early or aborting closes the stream. */
export async function* stream(path, body, signal) {
  const answer = await send(path, { body, signal });
  const requestId = answer.headers.get("x-request-id");
  for await (const data of events(answer.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError({ ...chunk.error, requestId });
    yield chunk;
  }
  throw new ApiError({ message: "The answer ended before its end.", code: "stream_ended", requestId });
}

/** Yield the data of each server-sent event of a byte stream, however the bytes are cut. */
export async function* events(bytes) {
  const reader = bytes.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += decoder.decode(value, { stream: true });
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        }
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

/** The models of the service: { chat: [card], reward: [card] }. */
export async function models() {
  const { value } = await call("/v1/models");
  const of = (kind) => value.data.filter((card) => card.kind === kind);
  return { chat: of("chat"), reward: of("reward") };
}

/** What `/readyz` says: { ready, text }. */
export async function readiness() {
  try {
    await call("/readyz");
    return { ready: true, text: "Ready" };
  } catch (error) {
    const starting = error.code === "not_ready";
    return { ready: false, starting, text: starting ? error.message.replace(/^not ready: /, "Starting: ") : error.message };
  }
}
