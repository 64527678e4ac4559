// Files: downloads and uploads in chunks, which go on where they were cut.

import { createHash, randomUUID } from "node:crypto";
import { pipeline, Readable } from "node:stream";

import { crc32c } from "./crc32c.js";
import { FedroundError, retry } from "./errors.js";
import { SILENCE_TIMEOUT } from "./server.js";

const CHUNK = 3 << 18; // 768 KiB; the server takes 1 B to 1 MiB
const CHECKED_PER_MS = 10_000; // bytes that a server stores and checks at least before it answers an upload

export function sha256(bytes) {
  return createHash("sha256").update(bytes).digest("hex");
}

/**
 * Returns the model of a round: the file that came with it, or else a download. Verifies it.
 *
 * @param {{model: object, inlineModel: Buffer}} started The event round_started; `model` has modelId, version, sha256
 *   and sizeBytes.
 * @returns {Promise<Buffer>} The file.
 */
export async function download(server, { model, inlineModel }, log) {
  if (inlineModel.length && sha256(inlineModel) === model.sha256) return inlineModel;
  const { modelId, version, sizeBytes } = model;
  const file = Buffer.alloc(sizeBytes);
  let size = 0;
  await retry(async (state) => {
    if (size) log(`the download goes on at byte ${size} of ${sizeBytes}`);
    // Without `compression` in the request, chunks are not compressed.
    for await (const { chunk, chunkCrc32c } of server.read(server.models, "downloadModel", {
      modelId,
      version,
      offset: size,
    })) {
      if (size + chunk.length > sizeBytes) throw new Error(`model ${modelId} is larger than announced`);
      if (chunk.length && crc32c(chunk) !== chunkCrc32c) {
        throw FedroundError.unavailable(`the chunk at byte ${size} was damaged in transit`);
      }
      chunk.copy(file, size);
      size += chunk.length;
      state.failures = 0;
    }
    if (size < sizeBytes) throw FedroundError.unavailable(`the download ended early, after ${size} bytes`);
  }, log);
  if (sha256(file) !== model.sha256) throw new Error(`model ${modelId} arrived with another SHA-256`);
  return file;
}

/**
 * Submits an update, for as long as the server takes to accept or to reject it. After a cut it asks how much has
 * arrived, and sends the rest. If the server has accepted it already, it answers with the same receipt.
 *
 * @param {object} spec UpdateSpec without what describes the file.
 * @param {Buffer} file The safetensors file.
 * @returns {Promise<object>} The receipt.
 */
export async function upload(server, spec, file, log) {
  const whole = { ...spec, sha256: sha256(file), sizeBytes: file.length, uploadId: randomUUID() };
  let offset = null;
  return retry(async (state) => {
    if (offset === null) {
      offset = 0;
    } else {
      const { committedSize } = await server.call(server.rounds, "getUpload", { uploadId: whole.uploadId });
      if (committedSize > offset) state.failures = 0;
      offset = committedSize;
      log(`the upload goes on at byte ${offset} of ${file.length}`);
    }
    return send(server, { ...whole, offset }, file);
  }, log);
}

/** Sends a file once, from an offset on. */
function send(server, spec, file) {
  return new Promise((resolve, reject) => {
    let isSilent = false;
    const call = server.rounds.submitUpdate(server.metadata, (error, response) => {
      clearTimeout(alarm);
      source.destroy();
      if (isSilent) reject(server.leave("the server did not go on with the upload"));
      else if (error) reject(server.failed(error));
      else resolve(response.receipt);
    });
    const alarm = setTimeout(() => {
      isSilent = true;
      call.cancel();
    }, SILENCE_TIMEOUT + file.length / CHECKED_PER_MS);
    const source = Readable.from(messages(spec, file, () => alarm.refresh()));
    // It waits while the connection is full. How the call ended is told to its own callback.
    pipeline(source, call, (error) => error && call.cancel());
  });
}

function* messages(spec, file, isTaken) {
  yield { spec };
  for (let start = spec.offset; start < file.length; start += CHUNK) {
    isTaken();
    const chunk = file.subarray(start, start + CHUNK);
    yield { chunk, chunkCrc32c: crc32c(chunk) };
  }
  isTaken();
}
