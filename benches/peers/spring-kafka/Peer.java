import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.locks.LockSupport;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.springframework.kafka.core.DefaultKafkaConsumerFactory;
import org.springframework.kafka.listener.ConcurrentMessageListenerContainer;
import org.springframework.kafka.listener.ContainerProperties;
import org.springframework.kafka.listener.MessageListener;
import org.springframework.kafka.support.serializer.ErrorHandlingDeserializer;
import org.springframework.kafka.support.serializer.JacksonJsonDeserializer;

/** Peer BROKERS TOPIC RECORDS WAIT_MICROS CONCURRENCY ROUNDS: Spring Kafka's listener container, a thread a partition, its own defaults otherwise. */
public class Peer {
    public record Line(String sku, int qty, long price_cents) {}

    public record Order(String event_id, String order_id, long seq, String customer, long total_cents, String currency, List<Line> lines, String occurred_at) {}

    public static void main(String[] arguments) throws Exception {
        long records = Long.parseLong(arguments[2]);
        long wait = Long.parseLong(arguments[3]) * 1_000;
        for (int round = 0; round < Integer.parseInt(arguments[5]); round++) {
            Map<String, Object> settings = Map.of("bootstrap.servers", arguments[0], "auto.offset.reset", "earliest");
            var factory = new DefaultKafkaConsumerFactory<String, Order>(
                settings,
                StringDeserializer::new,
                () -> new ErrorHandlingDeserializer<>(new JacksonJsonDeserializer<>(Order.class, false)));
            var began = new AtomicLong();
            var handled = new AtomicLong();
            var done = new CountDownLatch(1);
            var properties = new ContainerProperties(arguments[1]);
            properties.setGroupId("peer-" + UUID.randomUUID());
            properties.setMessageListener((MessageListener<String, Order>) record -> {
                began.compareAndSet(0, System.nanoTime());
                if (record.value().seq() < 0) throw new IllegalStateException();
                for (long until = System.nanoTime() + wait; wait > 0 && System.nanoTime() < until; ) LockSupport.parkNanos(until - System.nanoTime());
                if (handled.incrementAndGet() == records) done.countDown();
            });
            var container = new ConcurrentMessageListenerContainer<>(factory, properties);
            // More threads than partitions have nothing to do.
            container.setConcurrency(Math.min(8, Integer.parseInt(arguments[4])));
            container.start();
            done.await();
            System.out.println("seconds " + (System.nanoTime() - began.get()) / 1e9);
            container.stop();
        }
        System.out.println("done");
        // Until it is ended, so that its cost can be read.
        Thread.sleep(Long.MAX_VALUE);
    }
}
