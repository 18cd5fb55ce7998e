"""producer.py BROKERS TOPIC: records as services in Python write them."""

import gzip
import json
import sys
from datetime import datetime, timedelta, timezone

from cloudevents.core.bindings.kafka import to_binary, to_structured
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from cloudevents.v1 import kafka as v1
from cloudevents.v1.http import CloudEvent as V1Event
from confluent_kafka import Producer
from confluent_kafka.schema_registry import SchemaRegistryClient, header_schema_id_serializer
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.json_schema import JSONSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from kafka import KafkaProducer

OPENED, NOTED = "com.example.account.opened", "com.example.account.noted"
TIME = datetime(2026, 1, 2, 3, 4, 5, 123456, timezone(timedelta(hours=5, minutes=30)))

brokers, topic = sys.argv[1:]
producer = KafkaProducer(bootstrap_servers=brokers)


def send(message):
    key = message.key.encode() if message.key else None
    producer.send(topic, key=key, value=message.value, headers=list(message.headers.items())).get(30)


def attributes(id, **more):
    return {"specversion": "1.0", "id": id, "type": OPENED, "source": "/bank", "time": TIME, **more}


# The SDK's present interface.
full = attributes("python é 1", subject="accounts/7", tenant="acmé", urgent=True, partitionkey="7", datacontenttype="application/json")
events = [
    CloudEvent(full, {"account": "7"}),
    CloudEvent(attributes("2"), {"account": "minimal"}),
    CloudEvent(attributes("3", type=NOTED, partitionkey="7", datacontenttype="text/plain"), "héllo"),
    CloudEvent(attributes("4", partitionkey="7"), None),
]
for event in events:
    send(to_binary(event, JSONFormat()))
for event in events:
    send(to_structured(event, JSONFormat()))

# The interface of version 1, which version 2 keeps. In structured mode the record's content type
# is that of the data.
time = TIME.isoformat()
for convert in (v1.to_binary, v1.to_structured):
    send(convert(V1Event({**full, "time": time, "urgent": "yes", "id": "python é 5"}, {"account": "7"})))
for more, data in [
    ({"id": "6", "subject": None, "tenant": None}, {"account": "minimal"}),
    ({"id": "7", "type": NOTED, "datacontenttype": "text/plain", "partitionkey": "7"}, "héllo"),
    ({"id": "8", "partitionkey": "7"}, b'{"account":"base64"}'),
    ({"id": "9", "partitionkey": "7"}, None),
]:
    send(v1.to_structured(V1Event({**attributes("x"), "time": time, **more}, data)))

# Values that are neither CloudEvents nor plain JSON. With `type`, the record names its event.
value = json.dumps({"account": "7"})
for data in (gzip.compress(value.encode()), value.encode("utf-16"), value.encode("utf-16-le")):
    for headers in ([], [("eventType", OPENED.encode())]):
        producer.send(topic, key=b"7", value=data, headers=headers).get(30)
producer.close()

# Serializers of Confluent's schema registry: the schema's id is before the value or in a header.
registry = SchemaRegistryClient.new_client({"url": "mock://registry"})
fields = [{"name": "account", "type": "string"}]
avro = json.dumps({"type": "record", "name": "Opened", "fields": fields})
schema = json.dumps({"title": "Opened", "type": "object", "properties": {"account": {"type": "string"}}})
confluent = Producer({"bootstrap.servers": brokers})
for config in ({}, {"schema.id.serializer": header_schema_id_serializer}):
    for serializer in (AvroSerializer(registry, avro, conf=config), JSONSerializer(schema, registry, conf=config)):
        headers = []
        value = serializer({"account": "7"}, SerializationContext(topic, MessageField.VALUE, headers))
        confluent.produce(topic, key="7", value=value, headers=headers)
        confluent.flush()
