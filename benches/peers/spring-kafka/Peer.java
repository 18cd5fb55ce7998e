import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.LongAdder;
import java.util.concurrent.locks.LockSupport;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.springframework.context.annotation.AnnotationConfigApplicationContext;
import org.springframework.context.annotation.Bean;
import org.springframework.context.annotation.Configuration;
import org.springframework.kafka.annotation.EnableKafka;
import org.springframework.kafka.annotation.KafkaListener;
import org.springframework.kafka.config.ConcurrentKafkaListenerContainerFactory;
import org.springframework.kafka.core.DefaultKafkaConsumerFactory;
import org.springframework.kafka.support.serializer.ErrorHandlingDeserializer;
import org.springframework.kafka.support.serializer.JacksonJsonDeserializer;

/**
 * A typical Spring service: an annotated method that takes the event, with one thread per
 * partition. All other settings have their defaults.
 *
 * <p>Usage: Peer BROKERS TOPIC RECORDS WAIT_MICROS CONCURRENCY ROUNDS
 */
public class Peer {
    static String brokers, topic, group;
    static int threads;
    static Round round;

    public record Line(String sku, int qty, long price_cents) {}

    /** The fields that the other consumers read too. Further fields are ignored. */
    public record Order(
            String order_id,
            long seq,
            String customer,
            long total_cents,
            String currency,
            List<Line> lines) {}

    /** State of one round; the time runs from its first record to its last. */
    static class Round {
        final AtomicLong began = new AtomicLong();
        final LongAdder handled = new LongAdder();
    }

    @Configuration
    @EnableKafka
    public static class Service {
        static long wait;

        @Bean
        ConcurrentKafkaListenerContainerFactory<String, Order> kafkaListenerContainerFactory() {
            Map<String, Object> settings = Map.of(
                    "bootstrap.servers", brokers,
                    "group.id", group,
                    "auto.offset.reset", "earliest");
            var factory = new ConcurrentKafkaListenerContainerFactory<String, Order>();
            factory.setConsumerFactory(new DefaultKafkaConsumerFactory<>(
                settings,
                StringDeserializer::new,
                () -> new ErrorHandlingDeserializer<>(
                        new JacksonJsonDeserializer<>(Order.class, false))));
            factory.setConcurrency(threads);
            return factory;
        }

        @Bean
        Listener listener() {
            return new Listener();
        }
    }

    public static class Listener {
        @KafkaListener(topics = "#{__listener.topic}")
        public void on(Order order) {
            if (round.began.get() == 0) round.began.compareAndSet(0, System.nanoTime());
            if (order.seq() < 0) throw new IllegalStateException();
            long wait = Service.wait;
            for (long until = System.nanoTime() + wait; wait > 0 && System.nanoTime() < until; )
                LockSupport.parkNanos(until - System.nanoTime());
            round.handled.increment();
        }

        public String getTopic() {
            return topic;
        }
    }

    public static void main(String[] arguments) throws Exception {
        brokers = arguments[0];
        topic = arguments[1];
        long records = Long.parseLong(arguments[2]);
        Service.wait = Long.parseLong(arguments[3]) * 1_000;
        // Threads beyond the number of partitions would be idle.
        threads = Math.min(8, Integer.parseInt(arguments[4]));
        for (int n = 0; n < Integer.parseInt(arguments[5]); n++) {
            group = "peer-" + UUID.randomUUID();
            round = new Round();
            try (var context = new AnnotationConfigApplicationContext(Service.class)) {
                while (round.handled.sum() < records) Thread.sleep(1);
                System.out.println("seconds " + (System.nanoTime() - round.began.get()) / 1e9);
            }
        }
        System.out.println("done");
        // Keeps running until it is killed, so that the benchmark can read its cost.
        Thread.sleep(Long.MAX_VALUE);
    }
}
