// Takes part in a training in which this client is registered, until it ends. The data never leaves this machine.
//
// The model is a linear regression: `weight` has one number for each feature, `bias` is a scalar.

import { setImmediate as pause } from "node:timers/promises";

import { Participant } from "./fedround/participate.js";
import { Server } from "./fedround/server.js";

const NUM_EXAMPLES = 16;
const STEPS = 5;

/** Returns the data of this machine: here, points of a plane, whose features are random. */
function loadData(numFeatures) {
  const inputs = Float32Array.from({ length: NUM_EXAMPLES * numFeatures }, () => Math.random() - 0.5);
  const labels = new Float32Array(NUM_EXAMPLES);
  for (let row = 0; row < NUM_EXAMPLES; row++) {
    labels[row] = predict(inputs, row, new Float32Array(numFeatures).fill(2), 0.5);
  }
  return { inputs, labels };
}

let data; // made with the first model, which says how many features there are

function predict(inputs, row, weight, bias) {
  let sum = bias;
  const start = row * weight.length;
  for (let feature = 0; feature < weight.length; feature++) sum += inputs[start + feature] * weight[feature];
  return sum;
}

/** Trains the model on the data of this machine, in float32. */
async function train(model, round) {
  const weight = model.get("weight").data;
  const bias = model.get("bias").data;
  const { inputs, labels } = (data ??= loadData(weight.length));
  const [globalWeight, globalBias] = [weight.slice(), bias[0]];
  // A step that is small enough for any number of features.
  const rate = (round.config.learning_rate ?? 1) / (1 + weight.length / 12);
  for (let step = 0; step < STEPS; step++) {
    // While this program computes, it handles no events: in between it takes what has arrived, and learns whether the
    // round is over. Work that takes minutes belongs in a worker thread.
    await pause();
    if (round.signal.aborted) break;
    const errors = labels.map((label, row) => predict(inputs, row, weight, bias[0]) - label);
    for (let feature = 0; feature < weight.length; feature++) {
      let gradient = round.fedProxMu * (weight[feature] - globalWeight[feature]);
      errors.forEach((error, row) => (gradient += (error * inputs[row * weight.length + feature]) / NUM_EXAMPLES));
      weight[feature] -= rate * gradient;
    }
    const mean = errors.reduce((sum, error) => sum + error, 0) / NUM_EXAMPLES;
    bias[0] -= rate * (mean + round.fedProxMu * (bias[0] - globalBias));
  }
  // The update; how many examples it was trained on, which is its weight; and metrics, if there are any.
  return { model, numExamples: NUM_EXAMPLES, metrics: { train_loss: loss(model) }, localSteps: STEPS };
}

/** Evaluates the model: in earnest, on data that it was not trained on. */
async function evaluate(model) {
  data ??= loadData(model.get("weight").data.length);
  return { metrics: { loss: loss(model) }, numExamples: NUM_EXAMPLES };
}

/** Returns the mean squared error. */
function loss(model) {
  const [weight, bias] = [model.get("weight").data, model.get("bias").data[0]];
  const errors = data.labels.map((label, row) => predict(data.inputs, row, weight, bias) - label);
  return errors.reduce((sum, error) => sum + error * error, 0) / NUM_EXAMPLES;
}

const log = (text) => console.log(`${new Date().toISOString().slice(11, 19)}  ${text}`);
const { FEDROUND_SERVER = "127.0.0.1:50051", FEDROUND_TOKEN = "", FEDROUND_TLS_CA } = process.env;
const server = new Server(FEDROUND_SERVER, FEDROUND_TOKEN, FEDROUND_TLS_CA);
try {
  await new Participant(server, train, evaluate, log).run();
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
} finally {
  server.close();
}
