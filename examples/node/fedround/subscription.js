// The events of a user's trainings, each once and in order, across lost connections and restarts of the server.

import { backOff } from "./errors.js";

const INLINE_MODEL_BYTES = 1 << 20; // the largest model that comes with round_started: the most that servers send

/**
 * Yields the events of all trainings of the user, without heartbeats and going_away.
 *
 * A program that starts anew has no cursor, and needs none: the stream then begins with the rounds that are open, and
 * `submitted` says what is done already.
 *
 * @param {import("./server.js").Server} server
 * @param {string} sessionId UUID of this program: the server lets one program at a time take part as a user.
 * @param {(text: string) => void} log
 * @param {AbortSignal} signal Ends the subscription: its reason is thrown.
 */
export async function* subscribe(server, sessionId, log, signal) {
  let cursors = {}; // the last sequence, by training id
  let failures = 0;
  for (;;) {
    const request = {
      sessionId,
      resumeAfterSequence: cursors,
      inlineModelBytes: INLINE_MODEL_BYTES,
      attributes: { client: "examples/node", node: process.version },
    };
    try {
      for await (const event of server.read(server.rounds, "subscribe", request, signal)) {
        if (event.payload === "goingAway") throw server.leave(event.goingAway.message);
        failures = 0;
        const { trainingId, sequence, payload } = event;
        const known = cursors[trainingId] ?? 0;
        if (trainingId) cursors[trainingId] = Math.max(known, sequence);
        if (payload !== "heartbeat" && sequence > known) yield event;
      }
      throw server.leave("the server ended the subscription");
    } catch (error) {
      signal.throwIfAborted();
      if (error.reason === "CURSOR_EXPIRED") cursors = {};
      else await backOff(error, ++failures, log, signal);
    }
    log(`subscribing again behind ${JSON.stringify(cursors)}`);
  }
}
