import io.cloudevents.CloudEvent;
import io.cloudevents.core.builder.CloudEventBuilder;
import io.cloudevents.jackson.JsonFormat;
import io.cloudevents.kafka.CloudEventSerializer;
import io.cloudevents.kafka.PartitionKeyExtensionInterceptor;
import io.cloudevents.protobuf.ProtobufFormat;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.time.OffsetDateTime;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.Serializer;
import org.apache.kafka.common.serialization.StringSerializer;
import org.springframework.kafka.core.DefaultKafkaProducerFactory;
import org.springframework.kafka.core.KafkaTemplate;
import org.springframework.kafka.support.KafkaHeaders;
import org.springframework.kafka.support.serializer.JacksonJsonSerializer;
import org.springframework.kafka.support.serializer.JsonSerializer;
import org.springframework.messaging.support.MessageBuilder;

/** Producer BROKERS TOPIC cloudevents|spring: records as services in Java write them. */
public class Producer {
    static final String OPENED = "com.example.account.opened";
    static final String NOTED = "com.example.account.noted";
    static final OffsetDateTime TIME = OffsetDateTime.parse("2026-01-02T03:04:05.123456789+05:30");

    public record Opened(String account) {}

    public static void main(String[] arguments) throws Exception {
        Map<String, Object> broker = Map.of(ProducerConfig.BOOTSTRAP_SERVERS_CONFIG, arguments[0]);
        if (arguments[2].equals("spring")) {
            spring(broker, arguments[1]);
        } else {
            cloudEvents(broker, arguments[1]);
        }
    }

    static byte[] utf8(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    static CloudEventBuilder event(String id) {
        return CloudEventBuilder.v1().withId(id).withType(OPENED).withSource(URI.create("urn:example:bank"));
    }

    static void cloudEvents(Map<String, Object> broker, String topic) throws Exception {
        CloudEvent full = event("java é 1").withSubject("accounts/7").withTime(TIME)
            .withExtension("tenant", "acmé").withExtension("priority", 7).withExtension("urgent", true)
            .withExtension("partitionkey", "7").withData("application/json", utf8("{\"account\":\"7\"}")).build();
        CloudEvent minimal = event("2").withData(utf8("{\"account\":\"minimal\"}")).build();
        CloudEvent text = event("3").withType(NOTED).withSubject("7").withData("text/plain; charset=utf-8", utf8("héllo")).build();
        CloudEvent without = event("4").withSubject("7").build();
        for (String format : List.of("", JsonFormat.CONTENT_TYPE, ProtobufFormat.PROTO_CONTENT_TYPE)) {
            Map<String, Object> config = new HashMap<>(broker);
            config.put(CloudEventSerializer.ENCODING_CONFIG, format.isEmpty() ? "BINARY" : "STRUCTURED");
            if (!format.isEmpty()) {
                config.put(CloudEventSerializer.EVENT_FORMAT_CONFIG, format);
            }
            config.put(ProducerConfig.INTERCEPTOR_CLASSES_CONFIG, PartitionKeyExtensionInterceptor.class.getName());
            config.put(ProducerConfig.KEY_SERIALIZER_CLASS_CONFIG, StringSerializer.class);
            config.put(ProducerConfig.VALUE_SERIALIZER_CLASS_CONFIG, CloudEventSerializer.class);
            try (var producer = new KafkaProducer<Object, CloudEvent>(config)) {
                for (CloudEvent event : List.of(full, minimal, text, without)) {
                    producer.send(new ProducerRecord<>(topic, event)).get();
                }
            }
        }
        var json = new JsonFormat();
        String batch = "[" + new String(json.serialize(full), StandardCharsets.UTF_8) + "," + new String(json.serialize(minimal), StandardCharsets.UTF_8) + "]";
        try (var producer = new KafkaProducer<>(broker, new StringSerializer(), new ByteArraySerializer())) {
            var record = new ProducerRecord<>(topic, "7", utf8(batch));
            record.headers().add("content-type", utf8("Application/CloudEvents-Batch+JSON; charset=utf-8"));
            producer.send(record).get();
        }
    }

    @SuppressWarnings("removal")
    static void spring(Map<String, Object> broker, String topic) throws Exception {
        for (Serializer<Object> serializer : List.<Serializer<Object>>of(new JacksonJsonSerializer<>(), new JsonSerializer<>())) {
            String with = serializer.getClass().getSimpleName();
            var factory = new DefaultKafkaProducerFactory<String, Object>(broker, new StringSerializer(), serializer);
            var template = new KafkaTemplate<>(factory);
            template.send(topic, "7", new Opened(with)).get();
            template.send(topic, "7", List.of(new Opened(with))).get();
            template.send(MessageBuilder.withPayload(new Opened(with)).setHeader(KafkaHeaders.TOPIC, topic).setHeader(KafkaHeaders.KEY, "7")
                .setHeader("eventType", OPENED).setHeader("tenant", "acmé").setHeader("trace", UUID.fromString("0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e10")).build()).get();
            // Values that are not strings in Java: the header mapper writes them as JSON.
            template.send(MessageBuilder.withPayload(new Opened(with)).setHeader(KafkaHeaders.TOPIC, topic).setHeader(KafkaHeaders.KEY, "7")
                .setHeader("ce_specversion", "1.0").setHeader("ce_type", OPENED).setHeader("ce_source", URI.create("/spring/" + with)).setHeader("ce_time", TIME)
                .setHeader("ce_id", UUID.fromString("0199e6f0-5c1a-7d3e-9b21-4f0c8a2d6e10")).setHeader("ce_tenant", "acmé").build()).get();
            factory.destroy();
        }
    }
}
