// Reads JSON strings, one in each line. Evaluates each, awaits the result, and prints it as JSON.
import { createInterface } from "node:readline";

import { Centrifuge } from "centrifuge";
import { Centrifuge as CentrifugeProtobuf } from "centrifuge/build/protobuf";
import WebSocket from "ws";

Object.assign(globalThis, { Centrifuge, CentrifugeProtobuf, WebSocket });

for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    answer = { value: (await (0, eval)(JSON.parse(line))) ?? null };
  } catch (error) {
    answer = { error: String(error?.message ?? JSON.stringify(error)) };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
