// The connection to a server, and the two ways to call it: once, and as a stream.

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

import { credentials, loadPackageDefinition, Metadata } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

import { FedroundError } from "./errors.js";

// Outside of the repository: copy the folder protos/, and name it here.
const PROTOS = process.env.FEDROUND_PROTOS ?? fileURLToPath(new URL("../../../protos", import.meta.url));

const CALL_TIMEOUT = 60_000; // milliseconds
/** After so many milliseconds without a message a stream is dead: a heartbeat comes every 20 s. */
export const SILENCE_TIMEOUT = 60_000;

const OPTIONS = {
  "grpc.max_send_message_length": 2 << 20,
  "grpc.max_receive_message_length": 2 << 20,
  // Finds a dead connection within 40 s.
  "grpc.keepalive_time_ms": 30_000,
  "grpc.keepalive_timeout_ms": 10_000,
  // Connects to a restarted server within seconds; by default it may take two minutes.
  "grpc.initial_reconnect_backoff_ms": 200,
  "grpc.max_reconnect_backoff_ms": 5_000,
};

/** A server, called in the name of one user. */
export class Server {
  /**
   * @param {string} address HOST:PORT.
   * @param {string} token The token of the user.
   * @param {string} [tlsCa] PEM file of the authority that signed the server's certificate, if the machine does not
   *   trust it anyway. Without it, connections to this machine are plaintext.
   */
  constructor(address, token, tlsCa) {
    const isLocal = /^(localhost|127\.[\d.]+|\[::1\]):\d+$/.test(address);
    const security =
      isLocal && !tlsCa ? credentials.createInsecure() : credentials.createSsl(tlsCa ? readFileSync(tlsCa) : null);
    const options = { ...OPTIONS, "grpc.enable_http_proxy": isLocal ? 0 : 1 };
    // Numbers instead of objects for 64 bits: exact up to 2^53.
    const settings = { includeDirs: [PROTOS], longs: Number, enums: String, defaults: true, oneofs: true };
    const files = ["user", "training", "round", "model"].map((name) => `fedround/v1/${name}.proto`);
    const { v1 } = loadPackageDefinition(loadSync(files, settings)).fedround;

    this.rounds = new v1.RoundService(address, security, options);
    const channel = { channelOverride: this.rounds.getChannel() };
    this.models = new v1.ModelService(address, security, channel);
    this.trainings = new v1.TrainingService(address, security, channel);
    this.users = new v1.UserService(address, security, channel);
    this.address = address;
    this.metadata = new Metadata();
    this.metadata.set("authorization", `Bearer ${token.trim()}`);
  }

  close() {
    this.rounds.close();
  }

  /** Calls a method that has one request and one response; throws FedroundError. */
  call(service, method, request) {
    return new Promise((resolve, reject) => {
      const limit = { deadline: Date.now() + CALL_TIMEOUT };
      service[method](request, this.metadata, limit, (error, response) =>
        error ? reject(FedroundError.from(error)) : resolve(response),
      );
    });
  }

  /** Yields the messages of a method that answers with a stream; throws FedroundError, also after a silence. */
  async *read(service, method, request, signal) {
    const call = service[method](request, this.metadata);
    const cancel = () => call.cancel();
    signal?.addEventListener("abort", cancel);
    call.on("error", () => {}); // the loop throws it; one that comes after its end has no receiver
    let isSilent = false;
    const alarm = setTimeout(() => {
      isSilent = true;
      cancel();
    }, SILENCE_TIMEOUT);
    try {
      for await (const message of call) {
        alarm.refresh();
        yield message;
      }
    } catch (error) {
      if (isSilent) throw FedroundError.unavailable("the server sent nothing for a minute");
      throw error.metadata ? FedroundError.from(error) : error;
    } finally {
      clearTimeout(alarm);
      signal?.removeEventListener("abort", cancel);
      call.cancel();
    }
  }
}
