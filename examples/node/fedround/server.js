// The connection to a server, and the two ways to call it: once, and as a stream.

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

import { credentials, loadPackageDefinition, Metadata, status } from "@grpc/grpc-js";
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

/** A server, called in the name of one user. Of several replicas it uses one, and after a failure the next one. */
export class Server {
  #replicas; // the services of each
  #current = 0;

  /**
   * @param {string} address HOST:PORT, or a list of the replicas: HOST:PORT,HOST:PORT.
   * @param {string} token The token of the user.
   * @param {string} [tlsCa] PEM file of the authority that signed the server's certificate, if the machine does not
   *   trust it anyway. Without it, connections to this machine are plaintext.
   */
  constructor(address, token, tlsCa) {
    // Numbers instead of objects for 64 bits: exact up to 2^53.
    const settings = { includeDirs: [PROTOS], longs: Number, enums: String, defaults: true, oneofs: true };
    const files = ["user", "training", "round", "model"].map((name) => `fedround/v1/${name}.proto`);
    const { v1 } = loadPackageDefinition(loadSync(files, settings)).fedround;

    this.#replicas = address.split(",").map((one) => connect(v1, one, tlsCa));
    this.address = address;
    this.metadata = new Metadata();
    this.metadata.set("authorization", `Bearer ${token.trim()}`);
  }

  get rounds() {
    return this.#replicas[this.#current].rounds;
  }

  get models() {
    return this.#replicas[this.#current].models;
  }

  get trainings() {
    return this.#replicas[this.#current].trainings;
  }

  get users() {
    return this.#replicas[this.#current].users;
  }

  close() {
    for (const { rounds } of this.#replicas) rounds.close();
  }

  /** Goes on with the next replica, and returns the exception for a replica that is gone or shuts down. */
  leave(message) {
    this.#current = (this.#current + 1) % this.#replicas.length;
    return FedroundError.unavailable(message);
  }

  /** Returns the exception for an error of gRPC; the next call goes to another replica if this one is not available. */
  failed(error) {
    if (error.code === status.UNAVAILABLE) this.leave(error.details);
    return FedroundError.from(error);
  }

  /** Calls a method that has one request and one response; throws FedroundError. */
  call(service, method, request) {
    return new Promise((resolve, reject) => {
      const limit = { deadline: Date.now() + CALL_TIMEOUT };
      service[method](request, this.metadata, limit, (error, response) =>
        error ? reject(this.failed(error)) : resolve(response),
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
      if (isSilent) throw this.leave("the server sent nothing for a minute");
      throw error.metadata ? this.failed(error) : error;
    } finally {
      clearTimeout(alarm);
      signal?.removeEventListener("abort", cancel);
      call.cancel();
    }
  }
}

/** Returns the services of a server at an address, which connect with the first call. */
function connect(v1, address, tlsCa) {
  const isLocal = /^(localhost|127\.[\d.]+|\[::1\]):\d+$/.test(address);
  const security =
    isLocal && !tlsCa ? credentials.createInsecure() : credentials.createSsl(tlsCa ? readFileSync(tlsCa) : null);
  const rounds = new v1.RoundService(address, security, { ...OPTIONS, "grpc.enable_http_proxy": isLocal ? 0 : 1 });
  const channel = { channelOverride: rounds.getChannel() };
  return {
    rounds,
    models: new v1.ModelService(address, security, channel),
    trainings: new v1.TrainingService(address, security, channel),
    users: new v1.UserService(address, security, channel),
  };
}
