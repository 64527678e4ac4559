// Errors of calls, and the attempts of a call that may be repeated.

import { fileURLToPath } from "node:url";
import { setTimeout as sleep } from "node:timers/promises";

import { status } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const details = loadSync(fileURLToPath(new URL("error_details.proto", import.meta.url)), { longs: Number });

// What a call ends with, without a reason of the server, when the connection or the server is lost.
const CUT = new Set([
  status.UNAVAILABLE,
  status.CANCELLED,
  status.INTERNAL,
  status.UNKNOWN,
  status.DEADLINE_EXCEEDED,
]);
// An upload goes on after these.
const RESUMABLE = new Set(["UPLOAD_INCOMPLETE", "UPLOAD_OFFSET", "CHUNK_CORRUPT"]);
const MAX_BACKOFF = 10;

/** A call failed: the server answered with an error, or could not be reached. */
export class FedroundError extends Error {
  /**
   * @param {number} code The gRPC status code.
   * @param {string} reason UPPER_SNAKE_CASE, as docs/errors.md lists it; empty if the server gave none.
   * @param {string} message What happened and what to do next.
   * @param {number|null} retryAfter Seconds to wait at least before the next attempt; null if the server did not say.
   */
  constructor(code, reason, message, retryAfter = null) {
    super(`${reason || status[code]}: ${message}`);
    this.code = code;
    this.reason = reason;
    this.retryAfter = retryAfter;
  }

  /** Whether the same call may succeed a little later. */
  get isTransient() {
    if (this.retryAfter !== null || RESUMABLE.has(this.reason) || this.code === status.UNAVAILABLE) return true;
    return !this.reason && CUT.has(this.code);
  }

  /** Returns the exception for an error of gRPC. */
  static from(error) {
    let reason = "";
    let retryAfter = null;
    for (const packed of error.metadata?.get("grpc-status-details-bin") ?? []) {
      for (const detail of details["details.Status"].deserialize(packed).details ?? []) {
        if (detail.type_url?.endsWith("/google.rpc.ErrorInfo")) {
          reason = details["details.ErrorInfo"].deserialize(detail.value).reason;
        } else if (detail.type_url?.endsWith("/google.rpc.RetryInfo")) {
          const { seconds = 0, nanos = 0 } = details["details.RetryInfo"].deserialize(detail.value).retryDelay ?? {};
          retryAfter = seconds + nanos / 1e9;
        }
      }
    }
    return new FedroundError(error.code, reason, error.details.replace(/\s+/g, " "), retryAfter);
  }

  /** Returns the exception for a server that behaves like one that is gone. */
  static unavailable(message) {
    return new FedroundError(status.UNAVAILABLE, "", message);
  }
}

/**
 * Waits before the next attempt, longer after each failure and at random: clients that lose the server at once must not
 * come back at once. Throws an error that is not transient.
 *
 * @param {Error} error What the last attempt ended with.
 * @param {number} failures How many attempts in a row have failed.
 * @param {(text: string) => void} log
 * @param {AbortSignal} [signal] Ends the wait.
 */
export async function backOff(error, failures, log, signal) {
  if (!error.isTransient) throw error;
  log(`trying again: ${error.message}`);
  const seconds = Math.random() * Math.min(MAX_BACKOFF, 0.5 * 2 ** (failures - 1)) + (error.retryAfter ?? 0);
  await sleep(1000 * seconds, undefined, { signal });
}

/**
 * Repeats an operation until it succeeds, or fails for good.
 *
 * @param {(state: {failures: number}) => Promise<any>} operation Sets `failures` to 0 when it has made progress.
 * @param {(text: string) => void} log
 */
export async function retry(operation, log) {
  const state = { failures: 0 };
  for (;;) {
    try {
      return await operation(state);
    } catch (error) {
      state.failures += 1;
      await backOff(error, state.failures, log);
    }
  }
}
