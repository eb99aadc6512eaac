'use strict';
// Asks the running server until it answers; gives up after 20 seconds.
const url = `http://127.0.0.1:${process.env.PORT || 3000}/healthz`;

async function ask(deadline) {
  for (;;) {
    try {
      const answer = await (await fetch(url, { signal: AbortSignal.timeout(5000) })).json();
      if (answer.ok) return answer;
    } catch (error) {
      if (Date.now() > deadline) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

ask(Date.now() + 20000).then(
  (answer) => console.log(`${url} answers: ${JSON.stringify(answer)}`),
  (error) => {
    console.error(`${url} does not answer: ${error.cause?.message || error.message}`);
    process.exit(1);
  },
);
