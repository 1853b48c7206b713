// Which answers people preferred, kept for this browser tab, and their form as rows of a preference data set.

const STORE = "fuseline-votes";

/** Votes by turn: { prompt: [message], left, right: { model, text }, choice: "left" | "right" | "tie", seed }. */
const kept = read();
const votes = new Map(kept ?? []);

/** Whether something was kept that is not votes: it is left out, and the next vote takes its place. */
export const unreadable = kept === null;

function read() {
  try {
    const entries = JSON.parse(sessionStorage.getItem(STORE) ?? "[]");
    return Array.isArray(entries) && entries.every(isEntry) ? entries : null;
  } catch (error) {
    if (error instanceof SyntaxError) return null;
    throw error;
  }
}

function isEntry(entry) {
  const value = Array.isArray(entry) ? entry[1] : null;
  const answers = [value?.left, value?.right];
  return ["left", "right", "tie"].includes(value?.choice) && Array.isArray(value.prompt)
    && answers.every((answer) => typeof answer?.model === "string" && typeof answer.text === "string");
}

export function vote(turn, value) {
  votes.set(turn, value);
  sessionStorage.setItem(STORE, JSON.stringify([...votes]));
}

export function tally() {
  const ties = [...votes.values()].filter((v) => v.choice === "tie").length;
  return { votes: votes.size, ties, rows: votes.size - ties };
}

/** One JSON line per decided vote: prompt, chosen and rejected as lists of messages (TRL's conversational form). */
export function rows() {
  const answer = (side) => [{ role: "assistant", content: side.text }];
  return [...votes.values()].filter((v) => v.choice !== "tie").map((v) => {
    const [chosen, rejected] = v.choice === "left" ? [v.left, v.right] : [v.right, v.left];
    return JSON.stringify({
      prompt: v.prompt, chosen: answer(chosen), rejected: answer(rejected),
      chosen_model: chosen.model, rejected_model: rejected.model, seed: v.seed,
    }) + "\n";
  }).join("");
}
