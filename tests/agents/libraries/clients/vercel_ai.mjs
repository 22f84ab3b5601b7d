// The Vercel AI SDK over chat completions, responses, an OpenAI-compatible provider, and Anthropic's Messages.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import {
  APICallError, defaultSettingsMiddleware, generateObject, generateText, Output, stepCountIs, streamText, tool,
  wrapLanguageModel,
} from "ai";
import { z } from "zod";

globalThis.AI_SDK_LOG_WARNINGS = false;

const SERVICE = process.env.SERVICE_URL;
const MODEL = "step3p7-flash";
const apiKey = "no-key";
const baseURL = `${SERVICE}/v1`;
const skies = { Paris: "sunny", Oslo: "rainy" };
const person = z.object({ name: z.string(), age: z.number() });

const tools = {
  get_weather: tool({
    description: "The weather of a city.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => skies[city],
  }),
};

const openai = createOpenAI({ baseURL, apiKey });
const anthropic = createAnthropic({ baseURL, apiKey });
const compatible = createOpenAICompatible({
  name: "step", baseURL, apiKey, includeUsage: true, supportsStructuredOutputs: true,
});

// By default the SDK refers to its earlier answers by ids, which are not stored here.
const unstored = defaultSettingsMiddleware({ settings: { providerOptions: { openai: { store: false } } } });

async function loop(model, prompt) {
  const result = await generateText({ model, prompt, tools, stopWhen: stepCountIs(4), maxRetries: 0 });
  const steps = result.steps.map((step) => [
    step.finishReason,
    step.reasoningText ?? null,
    step.text,
    step.toolCalls.map((call) => [call.toolName, call.input]),
    step.toolResults.map((found) => found.output),
  ]);
  return [steps, result.text];
}

async function streamed(model, prompt) {
  const errors = [];
  const result = streamText({
    model, prompt, tools, stopWhen: stepCountIs(4), maxRetries: 0, onError: ({ error }) => errors.push(String(error)),
  });
  let text = "";
  const kinds = new Set();
  for await (const part of result.fullStream) {
    kinds.add(part.type);
    if (part.type === "text-delta") text += part.text;
  }
  const usage = await result.totalUsage;
  return [text, [...kinds].sort(), (await result.steps).length, usage.outputTokens > 0, errors];
}

async function refusals(make) {
  const refused = {};
  const cases = {
    bad_value: [MODEL, "Say hello plainly.", { topP: 9 }],
    no_model: ["no-such-model", "Say hello plainly.", {}],
    too_long: [MODEL, "word ".repeat(70000), {}],
  };
  for (const [name, [model, prompt, options]] of Object.entries(cases)) {
    try {
      await generateText({ model: make(model), prompt, maxRetries: 0, ...options });
    } catch (error) {
      refused[name] = [APICallError.isInstance(error), error.statusCode, error.message, error.isRetryable];
    }
  }
  return refused;
}

async function facts(make) {
  const model = make(MODEL);
  const plain = await generateText({ model, prompt: "Say hello plainly.", maxRetries: 0 });
  const reasoned = await generateText({ model, prompt: "Add 17 and 25.", maxRetries: 0 });
  const object = await generateObject({ model, schema: person, prompt: "Describe Ada as JSON.", maxRetries: 0 });
  const output = await generateText({
    model, output: Output.object({ schema: person }), prompt: "Describe Ada as JSON.", maxRetries: 0,
  });
  return {
    plain: plain.text,
    reasoned: [reasoned.reasoningText ?? null, reasoned.text],
    streamed: await streamed(model, "Add 17 and 25."),
    streamed_calls: await streamed(model, "Compare Paris and Oslo."),
    one_call: await loop(model, "What is the weather in Paris?"),
    two_calls: await loop(model, "Compare Paris and Oslo."),
    structured: [object.object, output.output],
    refusals: await refusals(make),
  };
}

const found = {};
for (const [name, make] of Object.entries({
  chat: (id) => openai.chat(id),
  responses: (id) => wrapLanguageModel({ model: openai.responses(id), middleware: unstored }),
  compatible: (id) => compatible(id),
  anthropic: (id) => anthropic(id),
})) {
  found[name] = await facts(make).catch((error) => `failed: ${error.stack}`);
}
console.log(JSON.stringify(found));
