// producer.js BROKERS TOPIC: records as services in JavaScript write them.
const { CloudEvent, Kafka: Binding } = require("cloudevents");
const { Kafka, logLevel } = require("kafkajs");

const OPENED = "com.example.account.opened";
const NOTED = "com.example.account.noted";
const TIME = "2026-01-02T03:04:05.123456789+05:30";

const [brokers, topic] = process.argv.slice(2);
const event = (id, more) => new CloudEvent({ id, type: OPENED, source: "/bank", time: TIME, ...more });

const events = [
  event("javascript é 1", {
    subject: "accounts/7", tenant: "acmé", priority: 7, urgent: true, partitionkey: "7",
    datacontenttype: "application/json", data: { account: "7" },
  }),
  event("2", { data: { account: "minimal" } }),
  event("3", { type: NOTED, partitionkey: "7", datacontenttype: "text/plain", data: "héllo" }),
  event("4", { partitionkey: "7", datacontenttype: "application/json", data: new Uint8Array(Buffer.from('{"account":"base64"}')) }),
];

// The SDK leaves data and headers as they are, and kafkajs sends text and bytes only.
function sendable({ key, value, headers, timestamp }) {
  const isSendable = typeof value === "string" || value instanceof Uint8Array;
  const set = Object.entries(headers).filter(([, header]) => header !== undefined);
  return {
    key,
    timestamp,
    value: isSendable ? (value instanceof Uint8Array ? Buffer.from(value) : value) : JSON.stringify(value),
    headers: Object.fromEntries(set.map(([name, header]) => [name, String(header)])),
  };
}

async function main() {
  const producer = new Kafka({ brokers: [brokers], logLevel: logLevel.ERROR }).producer();
  await producer.connect();
  const messages = [
    ...events.map(Binding.binary).map(sendable),
    ...events.map(Binding.structured),
    { key: "7", value: JSON.stringify(events), headers: { "content-type": "application/cloudevents-batch+json" } },
  ];
  for (const message of messages) {
    await producer.send({ topic, messages: [message] });
  }
  await producer.disconnect();
}

main();
