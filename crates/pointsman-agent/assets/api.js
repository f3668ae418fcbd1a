// Requests to the agent: the token, and what is said when one fails.

// All paths are relative to the page's: a proxy may have it under a path of its own, beside other agents with other tokens.
const KEY = `pointsman-token ${location.pathname}`;

// In this tab only, and gone with it.
export const token = () => sessionStorage.getItem(KEY);
export function setToken(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

/** What the agent has refused (`status`, `problem`), or that it could not be asked (`status` 0). */
export class Refused extends Error {
  constructor(status, problem) {
    super(problem?.detail ?? (status ? `the agent answered ${status}` : "the agent cannot be reached"));
    this.status = status;
  }
}

export async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (token()) headers.authorization = `Bearer ${token()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0);
  }
  if (response.ok) return response;
  let problem = null;
  try {
    problem = await response.json();
  } catch {
    // A proxy in between may say it in its own words; the status is enough.
  }
  throw new Refused(response.status, problem);
}

export const get = async (path) => (await ask(path)).json();

const at = (service, code) => `v1/services/${encodeURIComponent(service)}/instances/${encodeURIComponent(code)}`;
export const drain = (service, code) => ask(`${at(service, code)}/drain`, { method: "POST" });
export const undrain = (service, code) => ask(`${at(service, code)}/undrain`, { method: "POST" });
export const setWeight = (service, code, weight) =>
  ask(`${at(service, code)}/weight`, {
    method: "PUT",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ weight }),
  });
export const history = (service) => get(`v1/services/${encodeURIComponent(service)}/history`);
