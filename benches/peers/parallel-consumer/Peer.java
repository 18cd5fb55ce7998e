import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.ObjectMapper;
import io.confluent.parallelconsumer.ParallelConsumerOptions;
import io.confluent.parallelconsumer.ParallelConsumerOptions.ProcessingOrder;
import io.confluent.parallelconsumer.ParallelStreamProcessor;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.locks.LockSupport;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/**
 * Confluent's Parallel Consumer with order per key. All other settings have their defaults.
 *
 * <p>Usage: Peer BROKERS TOPIC RECORDS WAIT_MICROS CONCURRENCY ROUNDS
 */
public class Peer {
    public record Line(String sku, int qty, long price_cents) {}

    /** The fields that the other consumers read too. Further fields are ignored. */
    public record Order(
            String order_id,
            long seq,
            String customer,
            long total_cents,
            String currency,
            List<Line> lines) {}

    public static void main(String[] arguments) throws Exception {
        long records = Long.parseLong(arguments[2]);
        long wait = Long.parseLong(arguments[3]) * 1_000;
        var json = new ObjectMapper()
                .configure(DeserializationFeature.FAIL_ON_UNKNOWN_PROPERTIES, false)
                .readerFor(Order.class);
        for (int round = 0; round < Integer.parseInt(arguments[5]); round++) {
            Map<String, Object> settings = Map.of(
                "bootstrap.servers", arguments[0],
                "group.id", "peer-" + UUID.randomUUID(),
                "auto.offset.reset", "earliest",
                "enable.auto.commit", "false");
            var consumer = new KafkaConsumer<>(
                    settings, new ByteArrayDeserializer(), new ByteArrayDeserializer());
            var options = ParallelConsumerOptions.<byte[], byte[]>builder()
                .consumer(consumer)
                .ordering(ProcessingOrder.KEY)
                .maxConcurrency(Integer.parseInt(arguments[4]))
                .ignoreReflectiveAccessExceptionsForAutoCommitDisabledCheck(true)
                .build();
            var began = new AtomicLong();
            var handled = new AtomicLong();
            var done = new CountDownLatch(1);
            var processor = ParallelStreamProcessor.createEosStreamProcessor(options);
            processor.subscribe(List.of(arguments[1]));
            processor.poll(context -> {
                began.compareAndSet(0, System.nanoTime());
                try {
                    Order order = json.readValue(context.value());
                    if (order.seq() < 0) throw new IllegalStateException();
                } catch (IOException error) {
                    throw new UncheckedIOException(error);
                }
                for (long until = System.nanoTime() + wait; wait > 0 && System.nanoTime() < until; )
                    LockSupport.parkNanos(until - System.nanoTime());
                if (handled.incrementAndGet() == records) done.countDown();
            });
            done.await();
            System.out.println("seconds " + (System.nanoTime() - began.get()) / 1e9);
            processor.closeDontDrainFirst(Duration.ofSeconds(5));
        }
        System.out.println("done");
        // Keeps running until it is killed, so that the benchmark can read its cost.
        Thread.sleep(Long.MAX_VALUE);
    }
}
