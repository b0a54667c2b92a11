import { killFlow } from "../../soak/flow.ts";

Deno.test("killed at five points on the way of a message, nothing is lost and nothing said twice", async () => {
  await killFlow({
    points: 5,
    spots: [
      "a message arrives",
      "the model speaks",
      "the node is asked",
      "the reply arrives",
      "the reply is lost",
    ],
  });
});
