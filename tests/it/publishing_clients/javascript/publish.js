// publish.js URL CORRELATION_ID ORDER...: prints `ok` or the SQLSTATE of each order.
const { Client, DatabaseError } = require("pg");

// BLOCK

async function main() {
  const [url, correlationId, ...orders] = process.argv.slice(2);
  const client = new Client({ connectionString: url });
  await client.connect();
  for (const order of orders) {
    try {
      await placeOrder(client, Number(order), 1999, correlationId);
      console.log("ok");
    } catch (error) {
      if (!(error instanceof DatabaseError)) throw error;
      console.log(error.code);
    }
  }
  await client.end();
}

main();
