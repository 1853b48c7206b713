// A request of this page as a command that a shell runs unchanged.

/** Quote for POSIX shells: inside single quotes nothing is special but the single quote itself. */
export function quote(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** Return the curl command of a POST; the key stays in the environment and is never written out. */
export function curl(path, body, withKey) {
  const lines = [`curl -sS ${quote(location.origin + path)}`, `-H ${quote("content-type: application/json")}`];
  if (withKey) lines.push('-H "authorization: Bearer $FUSELINE_API_KEY"');
  lines.push(`--data-raw ${quote(JSON.stringify(body))}`);
  return lines.join(" \\\n  ");
}
