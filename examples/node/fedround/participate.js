// Takes part in trainings: waits for rounds, runs them, and submits what the functions of the participant return.

import { randomUUID } from "node:crypto";

import { FedroundError, retry } from "./errors.js";
import { parse, serialize } from "./safetensors.js";
import { subscribe } from "./subscription.js";
import { download, upload } from "./transfers.js";

// Rules that need nothing of a participant but its update, or only what the functions see and return.
const ALGORITHMS = new Set([
  "fedAvg",
  "fedProx", // train adds round.fedProxMu / 2 * ||w - w_global||^2 to its loss
  "fedNova", // train returns localSteps
  "qFedAvg", // train returns initialLoss
  "median",
  "trimmedMean",
  "krum",
  "multiKrum",
  "bulyan",
  "geometricMedian",
  "centeredClipping",
  "flTrust",
  "loraSvd",
  "freezeA",
]);
// The round goes on without this participant, which waits for the next one.
const MISSED = new Set([
  "ROUND_NOT_OPEN",
  "UPDATE_EXISTS",
  "METRICS_EXIST",
  "UPDATE_SUPERSEDED",
  "UPDATE_STALE",
  "NOT_IN_COHORT",
  "TRAINING_ENDED",
  "TRAINING_NOT_FOUND",
  "MODEL_NOT_FOUND",
]);
const ENDED = new Set(["TRAINING_STATE_COMPLETED", "TRAINING_STATE_ERROR"]);

/** The round asks for something that this participant cannot do. */
class Unsupported extends Error {}

/** One participant, in all trainings of its user. */
export class Participant {
  #sessionId = randomUUID();
  #userId = "";
  #rounds = new Map(); // the round in progress, by training id: {number, controller}
  #work = Promise.resolve();
  #failure = new AbortController(); // aborted with what a round failed with

  /**
   * @param {import("./server.js").Server} server
   * @param {(model: Map, round: object) => Promise<object>} train Returns {model, numExamples}, and may add metrics,
   *   localSteps and initialLoss.
   * @param {(model: Map, round: object) => Promise<object>} evaluate Returns {metrics, numExamples}.
   * @param {(text: string) => void} log
   */
  constructor(server, train, evaluate, log) {
    this.server = server;
    this.train = train;
    this.evaluate = evaluate;
    this.log = log;
  }

  /** Takes part until the first training ends; throws what a function throws, and errors of the server. */
  async run() {
    const { user } = await retry(() => this.server.call(this.server.users, "getMyself", {}), this.log);
    this.log(`connected to ${this.server.address} as "${user.name}"`);
    this.#userId = user.userId;
    // The stream may begin with the last events of trainings that ended before.
    const ended = await retry(() => this.#endedTrainings(), this.log);
    const { signal } = this.#failure;
    for await (const event of subscribe(this.server, this.#sessionId, this.log, signal)) {
      if (!ended.has(event.trainingId) && this.#handle(event)) break;
    }
    await this.#work;
    signal.throwIfAborted();
  }

  async #endedTrainings() {
    const ended = new Set();
    let pageToken = "";
    do {
      const request = { role: "TRAINING_ROLE_CLIENT", pageSize: 1000, pageToken };
      const page = await this.server.call(this.server.trainings, "getTrainings", request);
      for (const { trainingId, state } of page.trainings) if (ENDED.has(state)) ended.add(trainingId);
      pageToken = page.nextPageToken;
    } while (pageToken);
    return ended;
  }

  /** Handles an event without waiting for the work that it starts; returns whether the participation is over. */
  #handle({ trainingId, payload, ...event }) {
    switch (payload) {
      case "roundStarted":
        this.#begin(trainingId, event.roundStarted);
        return false;
      case "workNotNeeded":
      case "roundClosed":
        this.#release((id, number) => id === trainingId && number === event[payload].round);
        return false;
      case "trainingFinished":
        this.log(`the training is finished: the model has version ${event.trainingFinished.modelVersion}`);
        break;
      case "trainingFailed":
        this.log(`the training failed: ${event.trainingFailed.reason}: ${event.trainingFailed.message}`);
        break;
      case "trainingRemoved":
        this.log("the training was removed");
        break;
      case "clientRemoved":
        if (event.clientRemoved.clientId !== this.#userId) return false;
        this.log("this participant was removed from the training");
        break;
      default:
        return false; // for others, or of a newer server
    }
    this.#release((id) => id === trainingId);
    return true;
  }

  /** Aborts rounds in progress: what their functions return is not sent. */
  #release(isOver) {
    for (const [id, { number, controller }] of this.#rounds) if (isOver(id, number)) controller.abort();
  }

  /** Ends the subscription with an error, and what waits behind the round that failed. */
  #fail(error) {
    this.#release(() => true);
    this.#failure.abort(error);
  }

  /** Runs a round once those before it are done. */
  #begin(trainingId, started) {
    const current = this.#rounds.get(trainingId);
    if (started.submitted || current?.number === started.round) return;
    current?.controller.abort();
    const entry = { number: started.round, controller: new AbortController() };
    this.#rounds.set(trainingId, entry);
    this.#work = this.#work
      .then(() => this.#run(trainingId, started, entry.controller.signal))
      .catch((error) => this.#fail(error))
      .finally(() => {
        if (this.#rounds.get(trainingId) === entry) this.#rounds.delete(trainingId);
      });
  }

  async #run(trainingId, started, signal) {
    const name = `round ${started.round + 1}`; // counted from 1 for people, as in the fedround command
    const log = (text) => this.log(`${name}: ${text}`);
    if (signal.aborted) return;
    try {
      const result = await this.#result(trainingId, started, signal, log);
      if (signal.aborted) log("over, so nothing is sent");
      else await this.#submit(trainingId, started, result, log);
    } catch (error) {
      if (MISSED.has(error.reason)) {
        log(`missed: ${error.message}`);
        return;
      }
      log(`failed: ${error.message}`);
      await this.#report(trainingId, started, error);
      if (!(error instanceof Unsupported)) throw error;
    }
  }

  /** Returns what the function for the kind of the round returns. */
  async #result(trainingId, started, signal, log) {
    const problem = this.#problem(started);
    if (problem) throw new Unsupported(problem);
    const model = parse(await download(this.server, started, log));
    const round = {
      trainingId,
      number: started.round,
      modelVersion: started.model.version,
      config: Object.fromEntries(Object.entries(started.config).map(([key, one]) => [key, one[one.value]])),
      fedProxMu: started.aggregation.fedProx?.mu ?? 0,
      metricNames: started.metricNames,
      signal, // aborted once the round is over: what the function returns is not sent then
    };
    if (started.kind === "ROUND_KIND_EVALUATE") {
      log("evaluating");
      return this.evaluate(model, round);
    }
    log("training");
    return this.train(model, round);
  }

  /** Returns why this participant cannot run a round; undefined if it can. */
  #problem({ kind, aggregation, assigned, localRounds, trainable, private: kept, externalBaseSha256 }) {
    if (kind === "ROUND_KIND_EVALUATE") return this.evaluate ? undefined : "this participant cannot evaluate";
    if (kind !== "ROUND_KIND_TRAIN") return `this participant does not know rounds of the kind ${kind}`;
    if (!ALGORITHMS.has(aggregation.algorithm)) return `it does not know the rule ${aggregation.algorithm}`;
    if (aggregation.buffering) return "it does not know asynchronous training";
    if (assigned || localRounds > 1) return "it does not know daisy chaining";
    if (trainable.length || kept.length || externalBaseSha256) return "it sends all tensors of the model, not some";
    return undefined;
  }

  async #submit(trainingId, started, result, log) {
    const { model, ...report } = result;
    const spec = { trainingId, round: started.round, ...report };
    if (started.kind === "ROUND_KIND_EVALUATE") {
      await retry(() => this.server.call(this.server.rounds, "submitMetrics", spec), log);
      log("the report is accepted");
      return;
    }
    // In full: the precisions of round_started are an offer.
    const receipt = await upload(this.server, spec, serialize(model), log);
    log(`update ${receipt.updateId} is accepted`);
  }

  /** Tells the server that the round should not wait for this participant. */
  async #report(trainingId, started, error) {
    let reason = `${String(started.kind).replace("ROUND_KIND_", "")}_FAILED`;
    if (error instanceof Unsupported) reason = "UNSUPPORTED_ROUND";
    else if (error instanceof FedroundError && error.reason) reason = error.reason;
    const request = { trainingId, round: started.round, reason, message: error.message.slice(0, 1000) };
    try {
      await retry(() => this.server.call(this.server.rounds, "reportFailure", request), this.log);
    } catch (unreported) {
      this.log(`the failure could not be reported: ${unreported.message}`);
    }
  }
}
