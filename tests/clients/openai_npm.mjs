// What a user of the openai package of npm does; prints one JSON object of what each section found.

import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const model = process.env.INTERLOCK_MODEL ?? "smollm2-135m-instruct";
const client = new OpenAI({ maxRetries: 0, timeout: 120_000 });
const messages = [{ role: "user", content: "Name three colours." }];
const greedy = { model, messages, temperature: 0 };
const Sum = z.object({
  operator: z.enum(["plus", "minus"]),
  left: z.number().int().min(0).max(99),
  right: z.number().int().min(0).max(99),
});
const add = {
  type: "function",
  function: {
    name: "add",
    parameters: {
      type: "object",
      properties: {
        a: { type: "integer", minimum: 0, maximum: 99 },
        b: { type: "integer", minimum: 0, maximum: 99 },
      },
      required: ["a", "b"],
      additionalProperties: false,
    },
  },
};

const sections = {
  async chat() {
    const told = await client.chat.completions.create({ ...greedy, max_completion_tokens: 8 });
    return { text: told.choices[0].message.content, usage: told.usage };
  },

  async stream() {
    const chunks = await client.chat.completions.create({
      ...greedy,
      max_completion_tokens: 8,
      stream: true,
      stream_options: { include_usage: true },
    });
    let text = "";
    let usage = null;
    for await (const chunk of chunks) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    return { text, usage };
  },

  async many() {
    const told = await client.chat.completions.create({
      ...greedy,
      temperature: 1,
      n: 3,
      seed: 5,
      max_completion_tokens: 6,
    });
    return { indices: told.choices.map((choice) => choice.index) };
  },

  async logprobs() {
    const told = await client.chat.completions.create({
      ...greedy,
      max_completion_tokens: 4,
      logprobs: true,
      top_logprobs: 3,
    });
    return { alternatives: told.choices[0].logprobs.content.map((each) => each.top_logprobs.length) };
  },

  async tools() {
    const runner = client.chat.completions.stream({
      model,
      messages: [{ role: "user", content: "What is 12 + 30?" }],
      temperature: 0,
      max_completion_tokens: 128,
      tools: [add],
      tool_choice: "required",
    });
    let deltas = 0;
    runner.on("tool_calls.function.arguments.delta", () => deltas++);
    const told = await runner.finalChatCompletion();
    const calls = told.choices[0].message.tool_calls ?? [];
    return {
      finish: told.choices[0].finish_reason,
      calls: calls.map((call) => [call.function.name, JSON.parse(call.function.arguments)]),
      deltas,
    };
  },

  async structured() {
    const told = await client.chat.completions.parse({
      model,
      messages: [{ role: "user", content: "Write 3 + 4 as JSON." }],
      temperature: 0,
      max_completion_tokens: 96,
      response_format: zodResponseFormat(Sum, "sum"),
    });
    return { parsed: told.choices[0].message.parsed };
  },

  async errors() {
    const caught = async (call) => {
      try {
        await call();
      } catch (error) {
        const { status, type, param, code } = error;
        return { class: error.constructor.name, status, type, param, code };
      }
      return { class: null };
    };
    const ask = (more) => () =>
      client.chat.completions.create({ ...greedy, max_completion_tokens: 1, ...more });
    const stranger = new OpenAI({ apiKey: "not-the-key-of-this-server", maxRetries: 0 });
    return {
      model: await caught(ask({ model: "gpt-9" })),
      key: await caught(() => stranger.models.list()),
      temperature: await caught(ask({ temperature: 3 })),
    };
  },

  async models() {
    const ids = [];
    for await (const each of client.models.list()) ids.push(each.id);
    return { ids };
  },

  async completions() {
    const told = await client.completions.create({
      model,
      prompt: "The capital of France is",
      max_tokens: 4,
      temperature: 0,
      echo: true,
      logprobs: 1,
    });
    const { tokens, token_logprobs } = told.choices[0].logprobs;
    return { text: told.choices[0].text, tokens: tokens.length, first: token_logprobs[0] };
  },

  async abort() {
    const chunks = await client.chat.completions.create({
      ...greedy,
      max_completion_tokens: 500,
      ignore_eos: true,
      stream: true,
    });
    let seen = 0;
    for await (const _ of chunks) {
      if (++seen === 3) {
        chunks.controller.abort();
        break;
      }
    }
    return { seen };
  },
};

const found = {};
const wanted = process.argv.length > 2 ? process.argv.slice(2) : Object.keys(sections);
for (const name of wanted) {
  try {
    found[name] = await sections[name]();
  } catch (error) {
    found[name] = { failed: error.stack ?? String(error) };
  }
}
console.log(JSON.stringify(found));
