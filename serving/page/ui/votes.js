// Which answers people preferred, kept for this browser tab, and their form as rows of a preference data set.

const STORE = "fuseline-votes";

/** Votes by turn: { prompt: [message], left, right: { model, text }, choice: "left" | "right" | "tie", seed }. */
const votes = new Map(JSON.parse(sessionStorage.getItem(STORE) ?? "[]"));

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
